"""What `--model` may be: a checkpoint folder, a GGUF file, or the name of a model on the hub."""

import errno
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bilevel.apps.llm.hub import checkpoint, config_json, gguf, tensor_files, tokenizer
from bilevel.apps.llm.hub.checkpoint import Checkpoint
from bilevel.apps.llm.hub.tokenizer import Tokenizer
from bilevel.apps.llm.models.config import Config
from bilevel.files.needs import needs

# `organization/model`, or a model without one; not a path.
NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


class Found(NamedTuple):
    """A model whose small files have been read.

    Attributes:
        load: reads the weights; takes what `checkpoint.load` takes after the folder.
    """

    config: Config
    tokenizer: Tokenizer
    load: Callable[..., Checkpoint]


def find(model: str | Path) -> Found:
    """Read the configuration and the tokenizer of a model.

    A name that is no file here is looked up on the hub of Hugging Face, or in its cache.

    Raises:
        FileNotFoundError: there is no such model, or one of its files is missing.
        ConnectionError: the hub cannot be reached, and its cache does not hold the model.
        ValueError: a file is not what it should be, or not known here.
        ImportError: a package is not installed.
    """
    path = Path(model)
    if path.is_file():
        return _gguf(path)
    if path.exists() or not NAME.fullmatch(path.as_posix()):
        return _folder(path)
    return _on_hub(path.as_posix())


def _gguf(file: Path) -> Found:
    opened = gguf.open_gguf(file)
    text = tokenizer.from_files(opened.files, vocab_size=opened.config.vocab_size)
    return Found(opened.config, text, opened.load)


def _folder(folder: Path) -> Found:
    config = config_json.read(tensor_files.read_json(folder / "config.json", folder))
    return Found(config, tokenizer.load(folder), functools.partial(checkpoint.load, folder))


# --- the hub ---------------------------------------------------------------------------------


def _on_hub(name: str) -> Found:
    """First what is small, so that a model that is not known here is refused before its weights."""
    small = ["config.json", tensor_files.INDEX, *checkpoint.CARRIED]
    folder = _download(name, small)

    def load(**settings) -> Checkpoint:
        index = folder / tensor_files.INDEX
        shards = tensor_files.shard_names(index) if index.is_file() else set()
        # The commit that the folder is called after, should there be a new one by now.
        _download(name, [*small, tensor_files.SINGLE, *sorted(shards)], revision=folder.name)
        return checkpoint.load(folder, **settings)

    found = _folder(folder)
    return found._replace(load=load)


def _download(name: str, files: list[str], revision: str | None = None) -> Path:
    """The folder of the cache that holds these files of a model, where it has them."""
    here = f"{name} is no folder or file here"
    try:
        hub = needs("huggingface_hub", extra="hub")
    except ImportError as error:
        raise ImportError(f"{here}. To look it up on the hub, {error}") from error
    try:
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=files))
    except hub.errors.GatedRepoError as error:
        raise FileNotFoundError(
            f"the model {name} is open to those alone who accept its terms. Do so on its page, and "
            "log in with `hf auth login`."
        ) from error
    except (hub.errors.RepositoryNotFoundError, hub.errors.HFValidationError) as error:
        raise FileNotFoundError(
            f"{here}, and the hub has no such model. If it is private, log in with `hf auth login`."
        ) from error
    except Exception as error:  # of the network, in the words of whatever package does the talking
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise ConnectionError(
            f"{here}, and the hub cannot be reached to look it up. Check the name, or download the "
            "model and give its folder."
        ) from error
