"""`python -m transloom <job> …`, the same as `transloom <job> …`."""

import sys

from transloom.jobs.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
