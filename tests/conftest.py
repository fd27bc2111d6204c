import pytest

from fm_diffusers import GaussianFlowScheduler


@pytest.fixture(params=["memory", "json"])
def convert(request, tmp_path):
    """Make a scheduler of a class from another's configuration, in memory or saved."""

    def make(source, target=GaussianFlowScheduler, **kwargs):
        if request.param == "memory":
            return target.from_config(source.config, **kwargs)
        source.save_pretrained(tmp_path)
        return target.from_pretrained(tmp_path, **kwargs)

    make.way = request.param
    return make
