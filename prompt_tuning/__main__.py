"""`python -m prompt_tuning` is the `prompt-tuning` command."""

import sys

from prompt_tuning.main import main

if __name__ == "__main__":
  sys.exit(main())
