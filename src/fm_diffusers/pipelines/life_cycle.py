"""What a pipeline says of its last call, and how a running one is told to stop."""

from typing import Any

from fm_diffusers.pipelines.hub import SavedPipeline


class LifeCycle(SavedPipeline):
    """A pipeline whose calls can be looked at and interrupted, by diffusers' names.

    A callback reads and sets these on the pipeline that it is given, which is that of its call.
    """

    _guidance_scale: float = 1.0
    _guided: bool = False
    _num_timesteps: int = 0
    _interrupted: bool = False

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[Any] = []

    @property
    def guidance_scale(self) -> float:
        """The scale of the guidance; in a callback, setting `_guidance_scale` changes it."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the network is told the condition of nothing, too."""
        return self._guided

    @property
    def num_timesteps(self) -> int:
        """Number of evaluations of the loop, twice as many of the network where it is guided."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the call stops before its next step and returns the samples as they are."""
        return self._interrupt

    @property
    def _interrupt(self) -> bool:
        return self._interrupted

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        """Interrupt this call, or from outside, from another thread, all that are running."""
        self._interrupted = value
        for call in [*self._calls]:
            call._interrupt = value
