"""A configuration that cannot be changed: what would have no effect raises."""

from typing import Any

from diffusers.configuration_utils import FrozenDict


class FrozenConfig(FrozenDict):
    """A `FrozenDict` that is frozen; diffusers' own takes new values and nobody reads them.

    Names that begin with an underscore are diffusers' book-keeping and stay free.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_frozen = True

    def __setattr__(self, name: str, value: Any) -> None:
        self._refuse(name, value)
        super().__setattr__(name, value)

    def __setitem__(self, name: str, value: Any) -> None:
        self._refuse(name, value)
        super().__setitem__(name, value)

    def _refuse(self, name: str, value: Any) -> None:
        if not name.startswith("_") and self.__dict__.get("_is_frozen"):
            raise ValueError(
                f"a configuration is frozen, config.{name} = {value!r} would have no effect: make "
                f"another scheduler by from_config(scheduler.config, {name}={value!r}), or call "
                f"scheduler.register_to_config({name}={value!r})"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenConfig, (dict(self),)


def public(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration without diffusers' book-keeping."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


def alike(config: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two configurations are equal; what cannot be compared, an array, is another."""
    if config.keys() != other.keys():
        return False
    try:
        return all(
            value is other[name] or bool(value == other[name]) for name, value in config.items()
        )
    except (TypeError, ValueError, RuntimeError):
        return False
