"""Storage that lets a killed command resume.

Here live whole-file writes, shards, manifests, locks, hashes and launched processes. Imports no other package
of preftune but the errors.
"""
