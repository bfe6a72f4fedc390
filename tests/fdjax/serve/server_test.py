import contextlib
import dataclasses
import io
import json
import time

import msgpack
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from fdjax.run import plugins, repeat, replay
from fdjax.serve import app
from fdjax.serve.settings import ServeSettings
from tests.fdjax.serve.tiny_server import LIVE, Player, model, serving, wait_ready


@pytest.fixture(scope="module")
def shared():
    """One server for what does not need settings of its own."""
    with serving(model(), idle_timeout=60.0, max_sessions=3) as (client, server):
        wait_ready(client)
        yield client, server


@contextlib.contextmanager
def playing(client, **hello):
    with client.websocket_connect(LIVE) as socket:
        player = Player(socket, **hello)
        player.welcome = player.until("welcome")
        player.session = player.until("playing")
        yield player
        player.send("leave")
        assert player.end() == 1000


def pixels(frame):
    return np.asarray(Image.open(io.BytesIO(frame["data"])))


def test_a_session_begins_and_moves(shared):
    client, _ = shared
    with playing(client, image="webp") as player:
        assert player.welcome["keys"]["w"] == "forward"
        assert player.welcome["takes_prompt"]
        first = player.until("frame")
        assert (first["chunk"], first["image"]) == (0, "webp")
        assert first["data"][8:12] == b"WEBP"
        player.send("image", format="jpeg")
        player.send("keys", keys="wa", input=7, event_id="e1")
        chunk = player.until("chunk", keys="wa")
        assert chunk["applied_event_ids"] == ["e1"]
        frame = player.until("frame", input=7, index=3)
        assert frame["image"] == "jpeg"
        assert pixels(frame).shape == (96, 160, 3)
        player.send("keys", keys="", input=8, event_id="e1")
        repeated = player.until("acknowledged")
        assert not repeated["applied"]


def test_a_key_that_was_only_tapped_moves_a_chunk(shared):
    client, _ = shared
    with playing(client) as player:
        player.until("frame", chunk=1)
        player.send("keys", keys="d", input=1)
        player.send("keys", keys="", input=2)
        player.until("chunk", keys="d")
        assert player.until("chunk")["keys"] == ""


def test_undo_shows_the_same_picture_and_redo_the_same_again(shared):
    client, _ = shared
    with playing(client) as player:
        last = player.until("frame", chunk=2, index=3)
        after = player.until("frame", chunk=3, index=3)
        player.send("play", playing=False)
        now = player.until("state", playing=False)["timelines"][0]["committed"]
        player.send("undo", chunks=now - 3)
        state = player.until("state")
        (timeline,) = state["timelines"]
        assert timeline["committed"] == 3
        assert timeline["redo_limit"] == now - 3
        assert not state["playing"]
        # Whatever was on its way is stale now.
        still = player.until("frame", epoch=timeline["epoch"])
        np.testing.assert_array_equal(pixels(still), pixels(last))
        player.send("redo", chunks=1)
        again = player.until("frame", chunk=3, epoch=timeline["epoch"])
        np.testing.assert_array_equal(pixels(again), pixels(after))
        player.send("jump", chunk=2)
        assert player.until("state")["timelines"][0]["committed"] == 2


def test_no_frame_of_an_old_epoch_comes_behind_an_undo(shared):
    client, _ = shared
    with playing(client) as player:
        player.until("frame", chunk=2, index=0)
        player.send("undo")
        epoch = player.until("state")["timelines"][0]["epoch"]
        player.send("play", playing=True)
        for _ in range(20):
            message = player.read()
            assert message.get("epoch", epoch) == epoch or message["type"] != "frame"


def test_two_timelines_go_their_own_ways(shared):
    client, _ = shared
    with playing(client) as player:
        player.until("frame", chunk=2)
        player.send("fork")
        forked = player.until("forked")
        assert (forked["source"], forked["timeline"]) == ("a", "b")
        state = player.until("state")
        a, b = (timeline["committed"] for timeline in state["timelines"])
        assert a == b
        player.send("prompt", text="blue stone maze")
        chunk = player.until("chunk", timeline="b")
        assert chunk["prompt"] == "blue stone maze"
        player.send("select", timeline="a")
        state = player.until("state", selected="a")
        assert state["timelines"][0]["committed"] == a
        assert state["timelines"][0]["prompt"] == "red brick maze at dusk"
        player.send("drop", timeline="b")
        state = player.until("state")
        assert [timeline["timeline"] for timeline in state["timelines"]] == ["a"]
        player.send("drop", timeline="a")
        assert "only timeline" in player.until("refused")["text"]


def test_what_cannot_be_done_is_told_and_harms_nothing(shared):
    client, _ = shared
    with playing(client) as player:
        player.until("frame", chunk=1)
        for command, text in (
            ({"kind": "undo", "chunks": 99}, "undo can go back"),
            ({"kind": "redo"}, "redo can make"),
            (
                {"kind": "keys", "keys": "x"},
                "unknown key 'x'; the keys are w (forward)",
            ),
            ({"kind": "prompt", "text": " "}, "must not be empty"),
            ({"kind": "select", "timeline": "b"}, "fork first"),
            ({"kind": "record", "recording": False}, "Nothing is being recorded"),
        ):
            player.send(**command)
            assert text in player.until("refused")["text"]
        player.send("prompt", text="purple elephant")
        assert "ignored 'elephant'" in player.until("note")["text"]
        player.until("frame", index=3)


def test_a_recording_is_an_mp4_of_what_was_shown(shared, tmp_path):
    import av

    client, _ = shared
    with playing(client) as player:
        player.send("record", recording=True)
        player.until("state", recording=True)
        player.until("chunk")
        player.until("chunk")
        player.send("record", recording=False)
        file = player.until("file")
        answer = client.get(file["url"])
        assert answer.headers["content-type"] == "video/mp4"
        assert "attachment" in answer.headers["content-disposition"]
        with av.open(io.BytesIO(answer.content)) as video:
            frames = sum(1 for _ in video.decode(video=0))
        assert frames >= 5
        assert client.get(file["url"]).status_code == 404


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\xc1garbage", 4400),
        (msgpack.packb({"type": "hello", "exec": "rm"}), 4400),
        (msgpack.packb({"type": "keys", "keys": "w"}), 4400),
        (b"x" * 20000, 4400),
    ],
)
def test_a_malformed_message_closes_that_client_alone(shared, data, code):
    client, server = shared
    with playing(client) as player:
        with client.websocket_connect(LIVE) as socket:
            socket.send_bytes(data)
            with pytest.raises(WebSocketDisconnect) as closed:
                socket.receive_bytes()
            assert closed.value.code == code
        player.until("frame", index=3)
    assert not server.lobby.waiting


def test_who_sends_too_much_is_closed(shared):
    client, _ = shared
    with client.websocket_connect(LIVE) as socket:
        player = Player(socket)
        player.until("playing")
        for _ in range(600):
            player.send("ping", time=0.0)
        assert player.end() == 4429


def test_another_site_may_not_connect(shared):
    client, _ = shared
    for headers in ({"origin": "http://evil.example"}, {"host": "evil.example"}):
        with (
            pytest.raises(WebSocketDisconnect),
            client.websocket_connect(LIVE, headers=headers),
        ):
            pass
        assert client.get("/v1/sessions", headers=headers).status_code == 403


def test_a_page_that_comes_back_finds_its_session(shared):
    client, _ = shared
    with client.websocket_connect(LIVE) as socket:
        player = Player(socket)
        secret = player.until("playing")["secret"]
        before = player.until("chunk")
        socket.close()
    with client.websocket_connect(LIVE) as socket:
        player = Player(socket, resume=secret)
        assert player.until("playing")["secret"] == secret
        assert player.until("chunk")["committed"] > before["committed"]
        with client.websocket_connect(LIVE) as other:
            second = Player(other, resume=secret)
            second.until("playing")
            assert player.end() == 4409
            second.send("leave")
            assert second.end() == 1000


def test_a_director_sees_and_steers_and_takes_nothing_away(shared):
    client, _ = shared
    with playing(client) as player:
        player.until("frame", chunk=1)
        name = player.session["session"]
        (session,) = [
            each
            for each in client.get("/v1/sessions").json()["sessions"]
            if each["id"] == name
        ]
        assert session["prompt"] == "red brick maze at dusk"
        with client.websocket_connect(LIVE) as socket:
            director = Player(socket, watch=name)
            director.until("watching")
            director.until("frame")
            director.send("undo")
            assert "director" in director.until("refused")["text"]
            director.send("prompt", text="green hedge maze")
            assert player.until("chunk", prompt="green hedge maze")
            socket.close()
        player.until("chunk")
        with client.websocket_connect(LIVE) as socket:
            assert Player(socket, watch="nobody").end() == 4404


def test_the_page_and_its_parts(shared):
    client, _ = shared
    page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for name in ("main.js", "page.css", "icon.svg", "msgpack.js"):
        part = client.get(f"/page/{name}")
        assert part.status_code == 200
        assert part.headers["x-content-type-options"] == "nosniff"
    for path in ("/page/../app.py", "/page/%2e%2e/app.py", "/page/none.js", "/x"):
        assert client.get(path).status_code == 404


def test_metrics_are_in_the_text_format(shared):
    client, _ = shared
    lines = client.get("/metrics").text.strip().split("\n")
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert values["fdjax_ready"] == "1"
    assert float(values["fdjax_memory_bytes"]) > 1e6
    assert {f"# TYPE {name}" for name in values} <= {
        " ".join(line.split()[:3]) for line in lines
    }


def test_a_video_is_made_on_demand(shared):
    client, _ = shared
    body = {"prompt": "blue maze", "seconds": "0.75", "seed": 3, "controls": "w*8"}
    answer = client.post("/v1/videos", json=body)
    assert answer.status_code == 202
    name = answer.json()["id"]
    assert client.get(f"/v1/videos/{name}/content").status_code in (200, 409)
    for _ in range(400):
        video = client.get(f"/v1/videos/{name}").json()
        if video["status"] == "completed":
            break
        time.sleep(0.05)
    assert (video["status"], video["progress"]) == ("completed", 100)
    content = client.get(f"/v1/videos/{name}/content")
    assert content.content[4:8] == b"ftyp"
    assert client.delete(f"/v1/videos/{name}").status_code == 204
    assert client.get(f"/v1/videos/{name}").status_code == 404


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ([], "JSON object"),
        ({"prompt": ""}, "not empty"),
        ({"promt": "x"}, "no field 'promt'"),
        ({"model": "sora"}, "model must be 'maze-world'"),
        ({"seconds": 0}, "seconds must be in"),
        ({"seconds": True}, "seconds must be in"),
        ({"seconds": "nan"}, "seconds must be in"),
        ({"seed": -1}, "seed must be"),
        ({"controls": "x*3"}, "unknown key"),
        ({"controls": "w*999999"}, "at most"),
        ({"controls": 3}, "controls must be"),
    ],
)
def test_a_video_that_cannot_be_made_is_refused(shared, body, text):
    client, _ = shared
    answer = client.post("/v1/videos", json=body)
    assert answer.status_code == 400
    assert text in answer.json()["error"]["message"]


def test_bodies_have_a_limit(shared):
    client, _ = shared
    assert client.post("/v1/videos", content=b"x" * 70000).status_code == 413
    assert client.post("/v1/videos", content=b"{").status_code == 400


def test_the_queue_the_tokens_and_the_end_of_idle_sessions():
    limits = {"max_sessions": 1, "max_waiting": 1, "idle_timeout": 2.0}
    tokens = {"token": "for players", "director_token": "for directors"}
    with serving(model(), **limits, **tokens) as (client, _):
        # The page is there before the model is, and hears how far it is.
        assert client.get("/").status_code == 200
        with client.websocket_connect(LIVE) as socket:
            player = Player(socket, token="for players")
            assert 0 <= player.until("loading")["progress"] <= 1
            player.until("frame")
            with client.websocket_connect(LIVE) as other:
                second = Player(other, token="for players")
                assert second.until("queued")["position"] == 1
                with client.websocket_connect(LIVE) as third:
                    assert Player(third, token="for players").end() == 4503
                # Nobody presses a key: the first session ends, the second begins.
                assert player.end() == 4410
                second.until("playing")
                second.send("leave")
                assert second.end() == 1000
        for token, watch in (("wrong one", None), (None, None), ("for players", "x")):
            with client.websocket_connect(LIVE) as socket:
                Player(socket, token=token, watch=watch)
                with pytest.raises(WebSocketDisconnect) as closed:
                    socket.receive_bytes()
                assert closed.value.code == 4401
        paths = {"/v1/sessions": "for directors", "/v1/videos": "for directors"}
        for path, token in paths.items():
            assert client.get(path).status_code == 401
            for given, status in (("for players", 401), (token, 200)):
                headers = {"Authorization": f"Bearer {given}"}
                assert client.get(path, headers=headers).status_code == status


def test_sessions_of_a_batch_go_on_together_and_each_for_itself():
    with serving(model(), max_sessions=3, lanes=2) as (client, server):
        wait_ready(client)
        ticks = []
        batch = server.engine._together._batch
        tick = batch.tick
        batch.tick = lambda controls: ticks.append(len(controls)) or tick(controls)
        with playing(client) as one, playing(client) as two, playing(client) as third:
            for player, keys in ((one, "w"), (two, "a"), (third, "d")):
                player.send("keys", keys=keys, input=1)
            # More than there are lanes: the third is made alone.
            for player, keys in ((one, "w"), (two, "a"), (third, "d")):
                player.until("chunk", keys=keys)
            last = one.until("frame", index=3, input=1)
            one.send("undo")
            (timeline,) = one.until("state", playing=False)["timelines"]
            one.until("frame", epoch=timeline["epoch"])
            one.send("fork")
            one.until("forked")
            one.send("prompt", text="blue maze")
            one.until("chunk", prompt="blue maze", timeline="b")
            assert one.until("chunk")["committed"] > last["chunk"]
            for player in (two, third):
                while player.until("chunk")["committed"] < 6:
                    pass
        assert max(ticks) == 2
        assert server.engine.phase == "ready"


def test_a_saved_session_goes_on_where_it_was(shared):
    client, _ = shared
    with playing(client) as player:
        player.send("keys", keys="a", input=1)
        player.until("frame", chunk=4, index=3)
        player.send("undo", chunks=2)
        player.until("state", playing=False)
        player.send("save")
        data = client.get(player.until("file")["url"]).content
        player.send("keys", keys="w", input=2)
        wanted = player.until("frame", input=2, index=3)
    with playing(client) as player:
        player.until("frame", chunk=0)
        file = client.post("/v1/files", content=data).json()["file"]
        player.send("load", file=file)
        state = player.until("state", playing=False)
        (timeline,) = state["timelines"]
        assert timeline["redo_limit"] == 2
        assert timeline["undo_limit"] == timeline["committed"]
        player.until("frame", epoch=timeline["epoch"])
        player.send("keys", keys="w", input=1)
        loaded = player.until("frame", input=1, index=3, chunk=wanted["chunk"])
        np.testing.assert_array_equal(pixels(loaded), pixels(wanted))
        for damaged, text in (
            (b"", "no session"),
            (data[: len(data) // 2], "cut off"),
            (data.replace(b"maze-world", b"maze_world", 1), "maze_world"),
            (msgpack.packb({"format": "fdjax-live-session", "version": 1}), "damaged"),
            (data.replace(b"fdjax_session", b"fdjax_sessiom"), ""),
        ):
            name = client.post("/v1/files", content=damaged).json()["file"]
            player.send("load", file=name)
            assert text in player.until("refused", command="load")["text"]
        player.send("load", file="nothing")
        assert "no such file" in player.until("refused")["text"]
        player.until("chunk")


def test_what_was_played_is_played_again_by_the_page_and_by_a_run(shared, tmp_path):
    client, _ = shared
    with playing(client) as player:
        player.until("frame", chunk=1)
        player.send("keys", keys="a", input=1)
        player.until("chunk", keys="a")
        player.send("prompt", text="blue stone maze")
        player.until("chunk", prompt="blue stone maze")
        player.send("keys", keys="", input=2)
        player.until("chunk", keys="")
        player.send("play", playing=False)
        state = player.until("state", playing=False)
        count = state["timelines"][0]["committed"]
        player.send("undo", chunks=count - 1)  # again, so that all of it is looked at
        player.send("redo", chunks=count - 1)
        wanted = player.until("frame", chunk=count - 1, count=1)
        player.send("replay")
        data = client.get(player.until("file")["url"]).content
    assert len(data) < 20_000
    with playing(client) as player:
        name = client.post("/v1/files", content=data).json()["file"]
        player.send("load", file=name)
        assert "has ended" in player.until("note")["text"]
        (timeline,) = player.until("state")["timelines"]
        assert timeline["committed"] == count
        player.send("replay")
        again = client.get(player.until("file")["url"]).content
        assert json.loads(again)["chunks"] == json.loads(data)["chunks"]
        player.send("undo", chunks=1)
        player.until("state")
        player.send("redo", chunks=1)
        played = player.until("frame", chunk=count - 1, count=1)
        np.testing.assert_array_equal(pixels(played), pixels(wanted))
        foreign = json.loads(data)
        foreign["config"]["controls"] = "/etc/passwd.txt"
        name = client.post("/v1/files", content=json.dumps(foreign)).json()["file"]
        player.send("load", file=name)
        assert "unknown key" in player.until("refused")["text"]
    path = tmp_path / "walk.replay.json"
    path.write_bytes(data)
    expected = replay.read(path, plugins.known_classes())
    config = dataclasses.replace(expected.config, output_dir=tmp_path, progress=False)
    assert repeat.run(config, expected) == 0


def test_an_engine_that_breaks_ends_the_server_and_says_why(shared):
    _, server = shared
    ended = []
    broken = app.Server(server.engine.model, ServeSettings(), lambda: ended.append(1))
    broken.engine._prepare = lambda: None
    broken.engine._turn = lambda: (_ for _ in ()).throw(
        OSError(5, "the device is gone")
    )
    with TestClient(app.make_app(broken), base_url="http://127.0.0.1") as client:
        while not ended:
            time.sleep(0.01)
        assert client.get("/healthz").status_code == 503
        assert client.get("/healthz").json()["text"] == "the device is gone"
    assert isinstance(broken.engine.error, OSError)
