"""A member of a contender in a process of its own: python -m transloom.pipeline.bench <socket> <name> <rank>"""

import sys

from transloom.pipeline.processes import serve

serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
