"""What a list from the web, or a cache of unknown origin, may make us open."""

import os
import warnings

import numpy as np
import pytest

from bottleneck.data.decode import decode_image
from bottleneck.data.untrusted import refusal, remember_root, require_trusted_keys, require_trusted_root
from bottleneck.errors import CacheError
from bottleneck.remote.urls import allow, split_chain
from tests.helpers.encoded import image

pytestmark = pytest.mark.strangers
LIST = "https://host.example/data"


@pytest.mark.parametrize(
    "key", ["a.png", "b/c.png", "https://host.example/other/x.png", "https://HOST.example/x"]
)
def test_a_list_names_what_is_relative_or_on_its_own_host(key):
    assert refusal(key, LIST) is None


@pytest.mark.parametrize(
    "key",
    [
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "local:///x",
        "zip://x.png::file:///a.zip",
        "memory://x.png",
    ],
)
def test_a_list_names_no_file_of_this_machine_unless_allowed(key):
    assert "--allow-local" in refusal(key, LIST)
    with allow(remote=True):
        assert "--allow-local" in refusal(key, LIST)
    with allow(local=True):
        assert refusal(key, LIST) is None


@pytest.mark.parametrize(
    "key",
    [
        "http://127.0.0.1/x.png",
        "http://host.example/x.png",
        "https://host.example:8080/x",
        "s3://bucket/x.png",
        "https://host.example.evil.example/x",
        "https://user@evil.example/x",
        "simplecache::https://host.example/x",
        "http://[::1/x.png",
    ],
)
def test_a_list_names_no_other_host_unless_allowed(key):
    assert "--allow-remote" in refusal(key, LIST)
    with allow(local=True):
        assert "--allow-remote" in refusal(key, LIST)
    with allow(remote=True):
        assert refusal(key, LIST) is None


def test_the_colons_of_an_ipv6_address_are_no_chain():
    here = "http://[2001:db8::1]:8080/data"
    assert refusal("http://[2001:db8::1]:8080/x.png", here) is None
    for other in ("http://[2001:db8::2]:8080/x.png", "http://[2001:db8::1]/x.png", "http://[::1::file:///x"):
        assert "--allow" in refusal(other, here)
    assert split_chain("http://u@[::1]/a.png") == ("http://u@[::1]/a.png", "", "")
    assert split_chain("zip://a.png::http://[::1]/b.zip") == ("zip://a.png", "::", "http://[::1]/b.zip")
    assert split_chain("http://[::1]::file:///a::b") == ("http://[::1]", "::", "file:///a::b")


def test_a_cache_is_trusted_below_its_folder_and_the_current_one(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "here-too").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    cache = tmp_path / "there" / "c.h5"
    for trusted in ("here/a", "here", "there/images", "there"):
        require_trusted_root(str(tmp_path / trusted), cache)
    (tmp_path / "here" / "link").symlink_to("/etc")
    for root in (
        "/etc",
        str(tmp_path),
        str(tmp_path / "here-too"),
        "here/../..",
        str(tmp_path / "here" / "link"),
    ):
        with pytest.raises(CacheError, match="--allow-local"):
            require_trusted_root(root, cache)
        with allow(local=True):
            require_trusted_root(root, cache)
    for root in ("http://127.0.0.1:8000", "s3://bucket", "zip://::/etc/a.zip"):
        with pytest.raises(CacheError, match="--allow-remote"):
            require_trusted_root(root, cache)
        with allow(remote=True):
            require_trusted_root(root, cache)


@pytest.mark.parametrize(
    "key", ["/etc/passwd", "../../etc/passwd", "http://127.0.0.1/x.png", "file:///etc/passwd"]
)
def test_a_key_of_a_cache_leads_nowhere_else(tmp_path, monkeypatch, key):
    monkeypatch.chdir(tmp_path)
    os.mkdir(tmp_path / "images")
    require_trusted_keys(
        ["a.png", "../images/b..png", str(tmp_path / "x.png")], str(tmp_path / "images"), "c.h5"
    )
    with pytest.raises(CacheError, match="--allow"):
        require_trusted_keys(["a.png", key], str(tmp_path / "images"), "c.h5")
    with allow(local=True, remote=True):
        require_trusted_keys(["a.png", key], str(tmp_path / "images"), "c.h5")


def test_a_cache_that_this_user_wrote_is_trusted_with_the_root_it_was_written_from(tmp_path, monkeypatch):
    monkeypatch.setenv("BOTTLENECK_CACHE", str(tmp_path / "user"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    cache = tmp_path / "caches" / "c.h5"
    root, other = str(tmp_path / "photos"), str(tmp_path / "secrets")
    with pytest.raises(CacheError, match="--allow-local"):
        require_trusted_root(root, cache)
    remember_root(root, cache)
    require_trusted_root(root, cache)
    with pytest.raises(CacheError, match="--allow-local"):
        require_trusted_root(other, cache)
    with pytest.raises(CacheError, match="--allow-local"):
        require_trusted_root(root, tmp_path / "downloads" / "c.h5")


def test_scikit_learn_copies_the_filters_after_an_image_was_decoded():
    """Its jobs compile the patterns of all warning filters, ours included."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    decode_image(image())
    x = np.arange(40.0).reshape(20, 2)
    search = GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=2).fit(x, np.arange(20) % 2)
    assert search.best_params_["C"] in (0.1, 1.0)
    with pytest.warns(UserWarning, match="ours"):  # nothing of the user's is dropped by that
        warnings.warn("ours", stacklevel=1)
