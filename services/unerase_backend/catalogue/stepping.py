"""By which schedule a model of the catalogue is stepped: its own, or that of another model.

The folder of an erased model often names another sampler than its original's, and other timesteps give other pictures
from the same weights. A model that is stepped by another's schedule takes its stepping. Betas and prediction are what
its weights were trained for, so they stay its own. Of two flows, one takes the other's shift. A flow is not stepped by
the schedule of a model with betas, nor the other way around: they are not versions of one model.
"""

from unerase_backend.catalogue.catalogue import Catalogue
from unerase_backend.catalogue.schedule_problems import FILE
from unerase_backend.catalogue.schedules import ScheduleConfig, folder_problems, read_schedule, scheduler_config
from unerase_backend.runtime.errors import PreconditionError


def schedule_of(catalogue: Catalogue, name: str) -> ScheduleConfig:
    """Return what is followed of a model's scheduler configuration.

    Raises:
        NotFoundError: there is no such model.
        PreconditionError: its configuration is missing, or cannot be followed.
        UnavailableError: the model cannot be fetched from the hub.
    """
    folder = catalogue.model_parts(name).folder
    config = scheduler_config(folder)
    if config is None:
        message = f"the model {name!r} cannot be sampled: {FILE} of its scheduler is missing or is not JSON"
        raise PreconditionError(message, reason="SCHEDULE_UNSUPPORTED")
    if problems := folder_problems(folder, config):
        message = f"the model {name!r} cannot be sampled: {'; '.join(map(str, problems))}"
        raise PreconditionError(message, reason="SCHEDULE_UNSUPPORTED")
    return read_schedule(config)


def takes_other(own: ScheduleConfig, other: ScheduleConfig) -> bool:
    """Whether a model is computed otherwise by the schedule of `other` than by its own.

    The stepping differs, or the prediction, in which its denoising errors are then measured.
    """
    return own.stepping != other.stepping or own.prediction != other.prediction
