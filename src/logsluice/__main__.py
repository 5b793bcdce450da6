"""`python -m logsluice` is `logsluice`."""

import sys

from logsluice.cli import main

sys.exit(main())
