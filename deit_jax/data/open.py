"""The data formats, and `open_data`, which opens a data set in one of them."""

from deit_jax import builders
from deit_jax.data.arrays import open_arrays, open_digits
from deit_jax.data.folder import open_folder
from deit_jax.data.parquet import open_parquet
from deit_jax.data.source import Data
from deit_jax.data.tar_shards import open_tar
from deit_jax.data.tfds_sets import open_tfds

# A function whose keyword-only parameters are its options, and which returns `Data`.
SOURCES = {
    "tfds": open_tfds,
    "folder": open_folder,
    "tar": open_tar,
    "parquet": open_parquet,
    "arrays": open_arrays,
    "digits": open_digits,
}


@builders.chooses(source=SOURCES)
def open_data(*, source: str = "tfds", **options) -> Data:
    """Open a data set for reading; never downloads, never writes to the data set.

    Args:
        source: an entry of `SOURCES`.
        options: of that entry.

    Raises:
        ConfigError: an unknown source or name, missing or empty data, labels outside the
            classes; the message names what exists and the command that prepares what does not.
    """
    return builders.choose(SOURCES, source, "source")(**options)
