"""The lazy names of ``__init__.py``, for type checkers and editors."""

from varpro.diffusion.circle import solve_diffusion as solve_diffusion
from varpro.diffusion.projected import solve_projected as solve_projected
from varpro.diffusion.torus import TorusTeacher as TorusTeacher
from varpro.diffusion.torus import solve_torus_diffusion as solve_torus_diffusion
from varpro.distances import CircleMeasure as CircleMeasure
from varpro.distances import EuclideanMeasure as EuclideanMeasure
from varpro.distances import TorusDensity as TorusDensity
from varpro.distances import TorusMeasure as TorusMeasure
from varpro.loss import VarProLoss as VarProLoss
from varpro.optimizers.levenberg_marquardt import LevenbergMarquardt as LevenbergMarquardt
from varpro.ridge import reduced_risk as reduced_risk
from varpro.solvers.circle import CircleSolver as CircleSolver

__all__: list[str]
__version__: str

def installed_version(package: str) -> str: ...
