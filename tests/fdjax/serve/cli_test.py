import dataclasses
import socket
import subprocess
import sys

import pytest

from fdjax.config import derive_config
from fdjax.run.registry import runner_configs
from fdjax.serve import cli
from fdjax.serve.settings import ServeSettings


def serve(capsys, *arguments):
    code = cli.run(arguments)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_help_lists_options_and_methods(capsys):
    code, out, _ = serve(capsys, "--help")
    assert code == 0
    assert out.startswith("usage: fdjax-serve METHOD")
    for name in ("--host", "--token", "--max_sessions", "--idle_timeout", "maze-world"):
        assert name in out
    code, out, _ = serve(capsys, "maze-world", "--help")
    assert code == 0
    assert "--maze_seed" in out


def test_options_may_stand_anywhere_and_fields_are_left():
    given = ["--port=9000", "maze-world", "--max-sessions", "7", "--maze_seed", "3"]
    origins = ["--origins", "https://a.example,https://b.example"]
    settings, rest = cli.split_settings([*given, *origins])
    assert (settings.port, settings.max_sessions) == (9000, 7)
    assert settings.origins == ("https://a.example", "https://b.example")
    assert rest == ["maze-world", "--maze_seed", "3"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "name a METHOD"),
        (["maze-word"], "unknown method 'maze-word'; did you mean 'maze-world'"),
        (["maze-world", "--maze_sed=3"], "did you mean"),
        (["maze-world", "--port"], "flag --port needs a value"),
        (["maze-world", "--port=many"], "flag --port"),
        (["maze-world", "--port=-1"], "port must be in"),
        (["maze-world", "--max_sessions=0"], "max_sessions must be at least 1"),
        (["maze-world", "--token=abc"], "token must have 8 to 200"),
        (["maze-world", "--host=no.such.host.invalid"], "is no address"),
        (["maze-world", "--pixel_height=17"], "pixel_height"),
    ],
)
def test_mistakes_are_told_in_one_message(capsys, arguments, text):
    code, _, err = serve(capsys, *arguments)
    assert code == 2
    last = err.strip().split("\n")[-1]
    assert last.startswith("fdjax-serve: error: ")
    assert text in last


def test_a_port_in_use_is_told_before_anything_is_loaded(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = serve(capsys, "maze-world", f"--port={port}")
    assert code == 2
    assert f"127.0.0.1:{port} cannot be listened on" in err
    assert "--port" in err
    assert "Loading" not in err


def test_the_missing_extra_is_named(capsys, monkeypatch):
    find = cli.importlib.util.find_spec
    monkeypatch.setattr(
        cli.importlib.util, "find_spec", lambda n: None if n == "uvicorn" else find(n)
    )
    code, _, err = serve(capsys, "maze-world")
    assert code == 2
    assert "pip install 'fdjax[serve]'" in err


def test_a_method_without_pictures_is_refused():
    from fdjax.serve.model import Model

    config = runner_configs()["maze-world"]
    config = derive_config(config, pipeline={"decoder": None})
    runner = config.setup()
    with pytest.raises(ValueError, match="serve a method with a decoder"):
        Model(runner, runner.read_inputs())


def test_several_devices_are_refused():
    from fdjax.serve.model import Model

    config = dataclasses.replace(runner_configs()["maze-world"], mesh="sequence=2")
    runner = config.setup()
    with pytest.raises(ValueError, match="leave --mesh out"):
        Model(runner, runner.read_inputs())


def test_the_invitation_holds_tokens_behind_the_mark_that_is_not_sent():
    from fdjax.serve import access, listen

    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        text = listen.invitation(ServeSettings(), bound)
        assert text == f"Open http://127.0.0.1:{port}/"
        settings = access.with_tokens(ServeSettings(host="0.0.0.0"))
        lines = listen.invitation(settings, bound).split("\n")
        assert [line.split(":")[0] for line in lines] == ["players", "directors"]
        assert lines[0].endswith(f"/#token={settings.token}")


def test_importing_the_server_needs_no_extra():
    code = (
        "import sys; sys.modules['uvicorn'] = sys.modules['starlette'] = None\n"
        "from fdjax.serve import cli\n"
        "assert cli.run(['--help']) == 0"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
