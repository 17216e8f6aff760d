"""A member of a contender in a process of its own: python -m pipeline.bench <socket> <name> <rank>"""

import sys

from pipeline.processes import serve

serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
