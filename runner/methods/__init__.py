"""The methods a recipe can name. To add one: a file with a function under @method, and an import here."""

from runner.methods import add_difference as add_difference
from runner.methods import compat_diffusers as compat_diffusers
from runner.methods import compat_webui as compat_webui
from runner.methods import copy as copy
from runner.methods import dare as dare
from runner.methods import linear as linear
from runner.methods import model_stock as model_stock
from runner.methods import sigmoid as sigmoid
from runner.methods import slerp as slerp
from runner.methods import sphere as sphere
from runner.methods import task_arithmetic as task_arithmetic
from runner.methods import three_models as three_models
from runner.methods import ties as ties
from runner.methods import train_difference as train_difference
from runner.methods import weighted_sum as weighted_sum
from runner.methods.registry import METHODS as METHODS
from runner.methods.registry import Determinism as Determinism
from runner.methods.registry import Method as Method
from runner.methods.registry import Parameter as Parameter
from runner.methods.registry import Range as Range
from runner.methods.registry import find_method as find_method
