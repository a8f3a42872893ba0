"""Which of a hub repository's files a checkpoint needs.

A repository often holds the same weights several times: as safetensors, as pickles, in the
trainer's own layout, for other runtimes. Only what firstlight reads is chosen, and never a
pickle, because reading one runs code that it carries.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from difflib import get_close_matches
from fnmatch import fnmatchcase

from firstlight.errors import HubError

INDEX_NAME = "model.safetensors.index.json"

# Compared in lower case.
_DOCUMENTS = ("readme*", "licen[cs]e*", "notice*", "use_policy*", "*terms*")
_DESCRIPTIONS = (
    "config*.json",
    "hf_quant_config.json",
    "generation_config.json",
    "params.json",
    "tokenizer*.json",
    "tokenizer.model*",
    "*.tiktoken",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template*",
    INDEX_NAME,
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_SPLIT_GGUF = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf")


def is_safe_name(name: str) -> bool:
    """Whether a repository's file name stays inside the directory it is joined to, anywhere."""
    parts = name.split("/")
    return all(
        part not in ("", ".", "..") and not re.search(r'[\x00-\x1f\\:*?"<>|]', part)
        for part in parts
    )


def description_files(names: Collection[str]) -> list[str]:
    """Configuration, tokenizer, chat template, index and licence; from the top directory only."""
    return [name for name in names if _matches(name, _DESCRIPTIONS + _DOCUMENTS)]


def document_files(names: Collection[str]) -> list[str]:
    """The model card and the licence; all that a GGUF file does not hold itself."""
    return [name for name in names if _matches(name, _DOCUMENTS)]


def has_safetensors(names: Collection[str]) -> bool:
    """Whether the repository holds whole weights as safetensors that firstlight would choose."""
    return INDEX_NAME in names or bool(_unindexed_safetensors(names))


def safetensors_files(repository: str, names: Collection[str], index: object) -> list[str]:
    """The safetensors files that hold the weights, each once.

    Args:
        repository: its id, for messages.
        names: all files of the repository.
        index: the parsed index file, None if the repository has none.

    Raises:
        HubError: the index is damaged or names a file that the repository does not have.
    """
    if index is None:
        return _unindexed_safetensors(names)
    subject = f"{repository}/{INDEX_NAME}"
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) for name in weight_map.values()
    ):
        raise HubError(
            subject,
            "does not say which file holds which tensor",
            "Tell the repository's owner, or choose another revision with @REVISION",
        )
    shards = sorted(set(weight_map.values()))
    missing = [name for name in shards if name not in names or not name.endswith(".safetensors")]
    if missing:
        raise HubError(
            subject,
            f"names {len(missing)} file(s) that the repository does not have, first {missing[0]!r}",
            "The upload may be unfinished: try again later, or choose a revision with @REVISION",
        )
    return shards


def gguf_files(repository: str, names: Collection[str], wanted: str | None) -> list[str]:
    """The wanted GGUF file, with its further parts if it is split; the first is to be opened.

    Args:
        repository: its id, for messages.
        names: all files of the repository.
        wanted: the file's name; None if the repository is to have only one.

    Raises:
        HubError: no such file, or several to choose from.
    """
    available = sorted(name for name in names if name.lower().endswith(".gguf"))
    if wanted is None:
        models = [name for name in available if not _later_part(name) and "mmproj" not in name]
        if len(models) != 1:
            raise HubError(
                repository,
                f"holds {len(models)} GGUF models: {_listed(models)}",
                f"Name one, as in {repository}/{models[0] if models else 'FILE.gguf'}",
            )
        wanted = models[0]
    if wanted not in available:
        close = get_close_matches(wanted, available, n=1, cutoff=0.4)
        raise HubError(
            f"{repository}/{wanted}",
            f"the repository has no such file; it has {_listed(available)}",
            f"Name one of those, such as {repository}/{close[0]}"
            if close
            else "Choose a repository that holds GGUF files",
        )
    split = _SPLIT_GGUF.fullmatch(wanted)
    if split is None:
        return [wanted]
    count = split["parts"]
    parts = [f"{split['stem']}-{part:05}-of-{count}.gguf" for part in range(1, int(count) + 1)]
    missing = [name for name in parts if name not in available]
    if missing:
        raise HubError(
            f"{repository}/{wanted}",
            f"the repository lacks {len(missing)} of its {int(count)} parts, first {missing[0]!r}",
            "The upload may be unfinished: try again later, or choose another file",
        )
    return parts


def refuse_without_weights(repository: str, names: Collection[str]) -> HubError:
    """The error for a repository without weights that firstlight reads, saying what it has."""
    pickles = sorted(name for name in names if _matches(name, _PICKLES))
    if pickles:
        return HubError(
            repository,
            f"holds its weights only as pickles ({_listed(pickles)}), "
            "and reading a pickle runs whatever code it carries",
            "Choose a repository with safetensors or GGUF files of the same model",
        )
    if any(name.endswith(".safetensors") for name in names):
        return HubError(
            repository,
            "holds safetensors only in another layout: in sub-directories, as an adapter, "
            "or consolidated for one program",
            "Choose a repository of the whole model in the Hugging Face layout",
        )
    return HubError(
        repository,
        f"holds no weights ({_listed(sorted(names)) if names else 'it is empty'})",
        "Check the id: it should be that of a model with safetensors or GGUF files",
    )


def _unindexed_safetensors(names: Collection[str]) -> list[str]:
    top = sorted(name for name in names if "/" not in name and name.endswith(".safetensors"))
    if "model.safetensors" in top:
        return ["model.safetensors"]
    others = ("consolidated*", "adapter_*", "*.fp16.safetensors", "mmproj*")
    return [name for name in top if not any(fnmatchcase(name, other) for other in others)]


def _later_part(name: str) -> bool:
    split = _SPLIT_GGUF.fullmatch(name)
    return split is not None and int(split["part"]) != 1


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return "/" not in name and any(fnmatchcase(name.lower(), pattern) for pattern in patterns)


def _listed(names: list[str], most: int = 8) -> str:
    shown = ", ".join(names[:most]) or "none"
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
