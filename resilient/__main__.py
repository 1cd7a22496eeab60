# SPDX-License-Identifier: Apache-2.0
"""``python -m resilient`` is the command ``resilient``."""

import sys

from resilient.cli import main

if __name__ == "__main__":
    sys.exit(main())
