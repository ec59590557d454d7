"""When the prior and the auxiliary term help, by `docs/experiments/protocol.md`: `make experiments`."""
