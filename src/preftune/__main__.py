"""`python -m preftune`, which is also what `accelerate launch -m preftune` starts."""

from preftune.cli import main

main()
