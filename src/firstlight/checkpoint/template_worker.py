"""The process that renders chat templates. Runs as a script, apart from firstlight.

A template is a program from a stranger. Jinja2's sandbox keeps it from Python's internals, but
not from looping for ever, nor from filling the memory; and sandboxes have had holes. So it runs
in a process that can be killed, that may use little memory and processor time, and that, where
the system knows such limits, can neither open a file or socket nor start another process.

Reads requests on standard input and writes replies to standard output, each as a length in 8
bytes, little-endian, and so many bytes. A request is a JSON object with the keys "source" and
"variables". A reply is one byte that says what it is, and UTF-8 text: T the rendered text, R the
template refuses the conversation, E the template is at fault, M it needs too much memory.

What a template finds here is what transformers offers it ("Writing a chat template" in its
documentation): blocks trimmed, `break` and `continue`, `tojson` without HTML escapes,
`raise_exception`, `strftime_now`, and the tag `generation`, which changes nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import IO, Any

TEXT, REFUSED, FAULTY, TOO_LARGE = b"T", b"R", b"E", b"M"
LONGEST_TEXT = 64 << 20
"""Bytes of UTF-8. A context of a million tokens is some 5 MB of text."""


def main(memory_bytes: int, processor_seconds: float) -> None:
    """Answer requests until standard input ends."""
    render = _renderer()
    _limit("RLIMIT_AS", memory_bytes)
    _limit("RLIMIT_CORE", 0)
    _limit("RLIMIT_FSIZE", 0)
    _limit("RLIMIT_NPROC", 0)
    _limit("RLIMIT_NOFILE", 3)
    source, output = sys.stdin.buffer, sys.stdout.buffer
    while (request := read_message(source)) is not None:
        _limit_processor_time(processor_seconds)
        try:
            asked = json.loads(request)
            kind, text = render(asked["source"], asked["variables"])
            reply = kind + text.encode("utf-8", "surrogatepass")
            if len(reply) > LONGEST_TEXT:
                reply = TOO_LARGE + f"its text has over {LONGEST_TEXT >> 20} MiB".encode()
        except MemoryError:
            reply = TOO_LARGE + f"it needs over {memory_bytes >> 20} MiB of memory".encode()
        write_message(output, reply)


def read_message(source: IO[bytes]) -> bytes | None:
    """The next message, or None where the stream ends."""
    length = source.read(8)
    if len(length) < 8:
        return None
    count = int.from_bytes(length, "little")
    if count > 16 * LONGEST_TEXT:
        return None
    data = source.read(count)
    return data if len(data) == count else None


def write_message(output: IO[bytes], data: bytes) -> None:
    output.write(len(data).to_bytes(8, "little"))
    output.write(data)
    output.flush()


def _limit(name: str, value: int) -> None:
    """Lowers a limit of this process, where the system knows that limit."""
    try:
        import resource

        resource.setrlimit(getattr(resource, name), (value, value))
    except (ImportError, AttributeError, ValueError, OSError):
        pass  # the parent watches time and memory as well


def _limit_processor_time(seconds: float) -> None:
    """From now on. Ends this process even if the parent is gone and nobody watches it."""
    try:
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        soft = int(used.ru_utime + used.ru_stime + seconds) + 2  # whole seconds, and never sooner
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))
    except (ImportError, AttributeError, ValueError, OSError):
        pass


def _renderer() -> Callable[[str, dict[str, Any]], tuple[bytes, str]]:
    """A function from template and variables to a kind of reply and its text. Imports all that
    rendering needs, since later no file can be opened."""
    import datetime

    import jinja2
    import jinja2.exceptions
    import jinja2.ext
    import jinja2.nodes
    import jinja2.parser
    import jinja2.sandbox
    import jinja2.utils

    class Refusal(Exception):
        """What `raise_exception` raises."""

    class GenerationTag(jinja2.ext.Extension):
        """`{% generation %}` marks what an assistant wrote; rendering shows it as it is.

        Its body has a scope of its own, as in transformers.
        """

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("_shown")
            return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _shown(self, caller: Callable[[], str]) -> str:
            return caller()

    class MakeDictionary:
        """`dict` without the attributes of a class."""

        def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
            return dict(*args, **values)

        def fromkeys(self, *args: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args)

    class PlainNamespace(jinja2.utils.Namespace):
        """`namespace` without names that begin with an underscore."""

        def __init__(*args: Any, **values: Any) -> None:
            jinja2.utils.Namespace.__init__(*args, **values)
            for name in dict(*args[1:], **values):
                check_name(name)

        def __setitem__(self, name: str, value: Any) -> None:
            check_name(name)
            super().__setitem__(name, value)

    def check_name(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace may not hold the name {name!r}")

    def raise_exception(message: Any) -> None:
        raise Refusal(str(message))

    def strftime_now(layout: str) -> str:
        return datetime.datetime.now().strftime(layout)

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[GenerationTag, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = to_json
    environment.globals.update(
        raise_exception=raise_exception,
        strftime_now=strftime_now,
        dict=MakeDictionary(),
        namespace=PlainNamespace,
    )

    compiled: dict[str, jinja2.Template] = {}

    def render(source: str, variables: dict[str, Any]) -> tuple[bytes, str]:
        try:
            template = compiled.get(source)
            if template is None:
                compiled.clear()
                template = compiled[source] = environment.from_string(source)
            return TEXT, template.render(variables)
        except Refusal as refusal:
            return REFUSED, str(refusal)
        except jinja2.TemplateSyntaxError as error:
            return FAULTY, f"{error.message} (line {error.lineno})"
        except MemoryError:
            raise
        except RecursionError:
            return FAULTY, "it is nested, or calls itself, too deeply"
        except Exception as error:
            line = _line_in_template(error)
            place = f" (line {line})" if line else ""
            return FAULTY, f"{type(error).__name__}: {error}{place}"

    # What Python and jinja2 import, or read of the time zone, only when it is first used.
    render("{{ '<a>\\n' | pprint | striptags | urlize }}{{ lipsum(n=1) }}", {})
    render("{{ strftime_now('%c') }}{{ 1 // 0 }}", {})
    return render


def _line_in_template(error: Exception) -> int:
    line = 0
    step = error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == "<template>":
            line = step.tb_lineno
        step = step.tb_next
    return line


if __name__ == "__main__":
    sys.path += sys.argv[3:]  # where jinja2 is; this process starts without site-packages
    main(int(sys.argv[1]), float(sys.argv[2]))
