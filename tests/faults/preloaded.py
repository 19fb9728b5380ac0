"""For the server alone: numba's registries, which every process would fill in the same way."""

from numba.core.registry import cpu_target

cpu_target.typing_context.refresh()
cpu_target.target_context.refresh()
