import msgpack
import pytest

from fdjax.serve import protocol


def packed(**message):
    return msgpack.packb(message)


def test_fields_that_are_left_out_have_their_defaults():
    message = protocol.read(packed(type="prompt", text="blue"))
    assert message == {
        "type": "prompt",
        "text": "blue",
        "chunks": 1,
        "blend": "linear",
        "event_id": None,
    }


def test_what_is_packed_is_read():
    for name, fields in protocol.COMMANDS.items():
        values = {"text": "a", "frame": 1, "time": 0.5, "format": "jpeg", "keys": "w"}
        values |= {"playing": True, "recording": False, "chunk": 3, "file": "x"}
        given = {key: values[key] for key in fields if fields[key].default is ...}
        assert protocol.read(protocol.pack({"type": name, **given}))["type"] == name


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("text", "binary"),
        (None, "binary"),
        (b"\xc1", "msgpack"),
        (b"\x81\xa4type", "msgpack"),
        (b"\xd9\xff\xff", "msgpack"),
        (b"\x92" * 2000, "msgpack"),
        (msgpack.packb(b"x" * protocol.MAX_MESSAGE), "at most"),
        (msgpack.packb([1]), "map"),
        (msgpack.packb({1: 2}), "msgpack"),
        (msgpack.packb(msgpack.ExtType(1, b"x")), "msgpack"),
        (packed(kind="keys"), "unknown type"),
        (packed(type="exec"), "unknown type 'exec'"),
        (packed(type=["keys"]), "unknown type"),
        (packed(type="keys"), "needs the field 'keys'"),
        (packed(type="keys", keys="w", path="/etc"), "no field 'path'"),
        (packed(type="keys", keys=b"w"), "keys must be text"),
        (packed(type="keys", keys="w" * 17), "at most 16"),
        (packed(type="keys", keys="w", input=-1), "whole number"),
        (packed(type="keys", keys="w", input=True), "whole number"),
        (packed(type="prompt", text="x" * 2001), "at most 2000"),
        (packed(type="prompt", text="x", blend="cubic"), "one of linear, slerp"),
        (packed(type="undo", chunks=0), "whole number in [1,"),
        (packed(type="undo", chunks=1.0), "whole number"),
        (packed(type="play", playing=1), "true or false"),
        (packed(type="ping", time=float("nan")), "finite"),
        (packed(type="select", timeline="c"), "one of a, b"),
    ],
)
def test_anything_else_is_refused(data, text):
    with pytest.raises(protocol.ProtocolError, match=text.replace("[", r"\[")):
        protocol.read(data)


def test_what_a_director_sends_is_known():
    assert protocol.COMMANDS.keys() > protocol.WATCHER
