"""What scripts import late, for the server alone: seconds that every process would spend in the same way.

No thread may be running afterwards, since threads do not survive a fork.
"""

import sklearn.datasets  # noqa: F401
import torch._dynamo  # noqa: F401
from numba.core.registry import cpu_target

cpu_target.typing_context.refresh()
cpu_target.target_context.refresh()
