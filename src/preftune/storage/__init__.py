"""What lets a killed command continue: whole-file writes, shards, manifests, launched processes."""
