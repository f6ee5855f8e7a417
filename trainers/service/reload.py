"""New exports in the place of those that are served: loaded beside the old ones, which finish what they have."""

import logging
import threading
from collections.abc import Callable

from lora_core.export.session import OnnxSession, file_stamp
from trainers.service.models import Models, ServedModel

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""How often the files are looked at. One that changes still is left alone until the next time."""


class Reloader:
    """Looks at the ONNX files of a process's models, and puts new models in the place of old ones.

    A request keeps the model that it began with. A file that cannot be used is logged once and changes nothing.
    """

    def __init__(self, models: Models, adopt: Callable[[ServedModel], None]) -> None:
        """
        Args:
            adopt: is called with a new model before requests reach it.
        """
        self.models = models
        self.adopt = adopt
        self._served: dict[str, tuple] = {}
        """Of the files that were loaded, or found to be unusable."""
        self._seen: dict[str, tuple] = {}
        for name, model in models.by_name.items():
            session = model.served.model
            if not isinstance(session, OnnxSession):
                logger.warning("%s is no ONNX file: it is not loaded anew when it changes", model.source)
            else:
                self._served[name] = self._seen[name] = session.stamp
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="reload", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()

    def _work(self) -> None:
        while not self._stopped.wait(LOOK_SECONDS):
            for name in self._served:
                self._look(name)

    def _look(self, name: str) -> None:
        old = self.models.by_name[name]
        assert old.onnx_file is not None
        stamp = file_stamp(old.onnx_file)
        settled, self._seen[name] = stamp == self._seen[name], stamp
        if not stamp or not settled or stamp == self._served[name]:
            return
        self._served[name] = stamp
        try:
            new = self.models.load_anew(old)
        except Exception as error:  # whatever it is, the old model goes on
            line = (str(error).splitlines() or [type(error).__name__])[0]
            logger.error("the new %s cannot be used, the old one is served on: %s", old.onnx_file, line)
            return
        self.adopt(new)
        self.models.exchange(new)
        logger.info("%s is now the new %s", name, old.onnx_file)
        # Nobody who chose the old one asks it for more by then; what it has it finishes.
        last = threading.Timer(self.models.settings.timeout, old.close)
        last.daemon = True
        last.start()
