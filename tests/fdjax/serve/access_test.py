import pytest

from fdjax.serve import access
from fdjax.serve.access import Role
from fdjax.serve.parcels import Parcels
from fdjax.serve.settings import ServeSettings


def test_this_machine_needs_no_token():
    settings = access.with_tokens(ServeSettings())
    assert settings.token is None
    assert access.role_of(None, settings) is Role.DIRECTOR


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_any_other_address_has_tokens(host):
    settings = access.with_tokens(ServeSettings(host=host))
    assert settings.token
    assert settings.director_token
    assert settings.token != settings.director_token
    assert access.role_of(settings.token, settings) is Role.PLAYER
    assert access.role_of(settings.director_token, settings) is Role.DIRECTOR
    for wrong in (None, "", settings.token[:-1], settings.token + "x", "ü"):
        assert access.role_of(wrong, settings) is Role.NONE


def test_a_token_that_is_given_is_kept():
    settings = access.with_tokens(ServeSettings(token="our secret"))
    assert settings.token == "our secret"
    assert access.role_of(None, settings) is Role.NONE


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        (None, "127.0.0.1:8000", True),
        ("http://127.0.0.1:8000", "127.0.0.1:8000", True),
        ("http://localhost:8000", "localhost:8000", True),
        ("http://[::1]:8000", "[::1]:8000", True),
        ("http://evil.example", "127.0.0.1:8000", False),
        ("http://127.0.0.1:9000", "127.0.0.1:8000", False),
        ("null", "127.0.0.1:8000", False),
        # A foreign name that was made to point here.
        ("http://evil.example:8000", "evil.example:8000", False),
        (None, "evil.example", False),
        (None, None, False),
        (None, "127.0.0.1.evil.example", False),
        ("https://friend.example", "localhost:8000", True),
    ],
)
def test_pages_of_other_sites_may_not_connect(origin, host, allowed):
    settings = ServeSettings(origins=("https://friend.example",))
    assert access.is_allowed_origin(origin, host, settings) is allowed


def test_with_a_token_any_name_of_the_host_will_do():
    settings = ServeSettings(host="0.0.0.0", token="long enough")
    assert access.is_allowed_origin("http://box:8000", "box:8000", settings)
    assert not access.is_allowed_origin("http://evil.example", "box:8000", settings)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("port", 70000, "port must be in"),
        ("max_sessions", 0, "at least 1"),
        ("idle_timeout", 0.0, "at least 1"),
        ("idle_timeout", float("nan"), "at least 1"),
        ("token", "short", "8 to 200"),
        ("token", "mit Umlaut ü", "ASCII"),
        ("origins", ("example.org",), "https://example.org"),
        ("origins", ("https://example.org/",), "without a path"),
    ],
)
def test_settings_that_make_no_sense_are_refused(field, value, text):
    with pytest.raises(ValueError, match=text):
        ServeSettings(**{field: value})


def test_two_roles_have_two_tokens():
    with pytest.raises(ValueError, match="must differ"):
        ServeSettings(token="the same one", director_token="the same one")


def test_a_bucket_fills_at_its_rate():
    now = [0.0]
    limit = access.RateLimit(2.0, 3.0, lambda: now[0])
    assert [limit.take() for _ in range(4)] == [True, True, True, False]
    now[0] = 0.5
    assert [limit.take() for _ in range(2)] == [True, False]
    now[0] = 1000.0
    assert [limit.take() for _ in range(4)] == [True, True, True, False]


def test_a_file_is_fetched_once_and_forgotten_in_time():
    now = [0.0]
    parcels = Parcels(10, lambda: now[0])
    first = parcels.put(b"1234", "text/plain", "a")
    assert parcels.take(first).data == b"1234"
    assert parcels.take(first) is None
    late = parcels.put(b"1234", "text/plain", "a")
    now[0] = 1000.0
    assert parcels.take(late) is None
    old = parcels.put(b"123456", "text/plain", "a")
    new = parcels.put(b"123456", "text/plain", "b")
    assert parcels.take(old) is None
    assert parcels.take(new).name == "b"
    with pytest.raises(ValueError, match="11 bytes, the most are 10"):
        parcels.put(b"x" * 11, "text/plain", "c")
