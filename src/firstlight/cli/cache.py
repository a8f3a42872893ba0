"""`firstlight cache`: packed weights on disk, and what becomes of them."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from firstlight.cli.columns import aligned
from firstlight.cli.terminal import harmless, json_text
from firstlight.errors import FirstlightError

if TYPE_CHECKING:
    from firstlight.packed.store import Entry, PackedStore

_STORED = "stored"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `cache`."""
    parser.epilog = (
        "Packed weights are written when a model is first loaded, and mapped from then on. All of "
        "them can be deleted at any time. FIRSTLIGHT_CACHE names another directory."
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    list_ = actions.add_parser("list", help="what is there (the default)")
    clear = actions.add_parser("clear", help="delete what is not in use")
    clear.add_argument(
        "model", nargs="?", metavar="MODEL", help="only this one, as `list` shows it"
    )
    verify = actions.add_parser("verify", help="compare every tensor with its checksum")
    limit = actions.add_parser("limit", help="show or set how much disk packed weights may take")
    limit.add_argument("size", nargs="?", metavar="SIZE", help="such as 20GiB; 0 keeps nothing; "
                       "'default' is 50 GiB or a quarter of the disk")  # fmt: skip
    for action in (list_, clear, verify, limit):
        action.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object"
        )


def run(arguments: argparse.Namespace) -> int:
    """Carry out the action; `verify` leaves with 1 where something is damaged."""
    from firstlight.packing import packed_store

    store = packed_store()
    if store is None:
        raise FirstlightError(
            "cache",
            "this system lacks the file locks that sharing packed weights needs",
            "Models run without it; there is nothing to do",
        )
    match arguments.action:
        case "clear":
            return _clear(arguments, store)
        case "verify":
            return _verify(arguments, store)
        case "limit":
            return _limit(arguments, store)
        case _:
            return _list(arguments, store)


def _list(arguments: argparse.Namespace, store: PackedStore) -> int:
    entries = store.entries()
    total = sum(entry.size for entry in entries)
    if arguments.json:
        print(json_text({**_place(store), "bytes": total, "entries": list(map(_values, entries))}))
        return 0
    from firstlight.engine.memory_plan import gibibytes

    rows = [("model", "weights", "layout", "size", "last used")]
    rows += [
        (values["model"] or entry.path.name, values["weights"], values["layout"],
         gibibytes(entry.size), values["last_used"] + (" (in use)" if entry.in_use else ""))
        for entry in entries
        for values in (_values(entry),)
    ]  # fmt: skip
    if entries:
        print(harmless(aligned(rows, left=range(5))))
    print(f"{gibibytes(total)} of at most {gibibytes(store.limit)} in {store.directory}")
    return 0


def _clear(arguments: argparse.Namespace, store: PackedStore) -> int:
    from firstlight.engine.memory_plan import gibibytes
    from firstlight.packed.store import remove

    entries = [entry for entry in store.entries() if _is_meant(entry, arguments.model)]
    if arguments.model is not None and not entries:
        raise FirstlightError(
            f"model {arguments.model!r}",
            "no packed weights of it are in the cache",
            "Give its name as `firstlight cache` shows it",
        )
    kept = [entry for entry in entries if not remove(entry.path)]
    if arguments.model is None:
        store.remove_unfinished()
    removed = [entry for entry in entries if entry not in kept]
    size = sum(entry.size for entry in removed)
    if arguments.json:
        print(json_text({"removed": list(map(_values, removed)), "bytes": size,
                         "in_use": list(map(_values, kept))}))  # fmt: skip
    else:
        print(f"{len(removed)} deleted, {gibibytes(size)}")
        for entry in kept:
            print(harmless(f"{_values(entry)['model'] or entry.path.name} is in use and was kept"))
    return 0


def _verify(arguments: argparse.Namespace, store: PackedStore) -> int:
    from firstlight.packed.file import damaged_tensors, open_packed
    from firstlight.packed.layout import DamagedPackedFile
    from firstlight.progress import progress

    results = []
    entries = store.entries()
    with progress("Verifying", total=sum(entry.size for entry in entries)) as advance:
        for entry in entries:
            try:
                damaged = damaged_tensors(open_packed(entry.path, use=False), advance)
                problem = f"damaged: {', '.join(damaged[:5])}" if damaged else ""
            except DamagedPackedFile as error:
                problem = str(error)
            except FileNotFoundError:
                continue
            results.append({**_values(entry), "problem": problem or None})
    if arguments.json:
        print(json_text({"entries": results}))
    else:
        for result in results:
            problem = result["problem"]
            print(harmless(f"{result['model'] or result['file']}: {problem or 'whole'}"))
        if any(result["problem"] for result in results):
            print("Damaged ones are packed again after `firstlight cache clear MODEL`.")
    return 1 if any(result["problem"] for result in results) else 0


def _limit(arguments: argparse.Namespace, store: PackedStore) -> int:
    from dataclasses import replace

    from firstlight.engine.memory_plan import gibibytes
    from firstlight.packed.limit import limit_of, parse_size, set_limit

    if arguments.size is not None:
        chosen = None if arguments.size == "default" else parse_size(arguments.size, "SIZE")
        set_limit(store.directory, chosen)
        store = replace(store, limit=limit_of(store.directory))
        store.trim()
    print(json_text(_place(store)) if arguments.json else gibibytes(store.limit))
    return 0


def _place(store: PackedStore) -> dict[str, Any]:
    return {"directory": str(store.directory), "limit": store.limit}


def _is_meant(entry: Entry, model: str | None) -> bool:
    names = {entry.path.name}
    if entry.header is not None:
        names.add(entry.header.model)
    return model is None or model in names


def _values(entry: Entry) -> dict[str, Any]:
    """One entry for a script; model, weights and layout are "" where the file is damaged."""
    header = entry.header
    formats = {each.tensor.format for each in header.tensors} if header is not None else set()
    return {
        "model": header.model if header is not None else "",
        "digest": header.key.digest if header is not None else "",
        "weights": ", ".join(sorted(formats)),
        "layout": (header.key.layout or _STORED) if header is not None else entry.problem,
        "file": entry.path.name,
        "size": entry.size,
        "last_used": time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used)),
        "in_use": entry.in_use,
    }
