"""A search that an audit makes once, although it takes the model with its guards and without.

Guards take no part in what an attack searches or trains. The unit that comes first records what it found, and the other
one takes it over.
"""

import json
from collections.abc import Callable
from typing import Any

from unerase_backend.attack.workbench import Workbench


def search_once(
    workbench: Workbench,
    search: Callable[[], Any],
    *depends: str,
    usable: Callable[[Any], bool] = lambda found: True,
) -> Any:
    """Return what `search` finds, as JSON writes it; the same without the search if another unit has recorded it.

    `depends` names what the search depends on beside the unit and its model. A record that is not `usable`, because it
    names an artefact that is lost, is made again.
    """
    key = workbench.search_key(*depends)
    if key and (recorded := workbench.recorded(key)) is not None and usable(found := json.loads(recorded)):
        workbench.check()
        return found
    found = search()
    if key:
        workbench.record(key, json.dumps(found).encode())
    return found
