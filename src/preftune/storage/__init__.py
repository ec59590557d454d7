"""What lets a killed command continue: whole-file writes, shards, manifests, locks, launched processes."""
