"""From a config's data section to its source."""

from trainer.config.run import RunConfig
from trainer.data.source import Source


def build_source(config: RunConfig) -> Source:
    """The data source of a config; raises UserError for files it cannot use."""
    return config.data.build(config.model, config.seed)
