"""Settings come from variables and one file, and a mistake in them is told with its place, never with a secret."""

import traceback
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from esper.errors import ConfigError
from esper.settings import check_parts, load


class Retry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tries: int = 3


class BusConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    max_length: int = Field(default=1_000, ge=1)
    retry_delay_s: float = 0.05
    lossy: bool = False
    topics: tuple[str, ...] = ()
    retry: Retry = Retry()
    token: SecretStr | None = None
    name: str = "bus"

    @field_validator("token", mode="before")
    @classmethod
    def _long_enough(cls, value: str) -> str:
        if len(value) < 8:
            raise ValueError(f"{value!r} is too short")
        return value


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "esper.toml"


def _refused(path: Path | None = None, **variables: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(BusConfig, "bus", path=path, environment=variables)
    return caught.value


def test_without_anything_the_defaults_of_the_config_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(BusConfig, "bus", environment={}) == BusConfig()


def test_a_variable_beats_the_file_and_the_file_beats_the_default(toml: Path) -> None:
    toml.write_text("[bus]\nmax_length = 5\nretry_delay_s = 1.5\n[other]\nmax_length = 9\n")
    found = load(BusConfig, "bus", path=toml, environment={"ESPER_BUS_MAX_LENGTH": "7", "BUS_MAX_LENGTH": "8"})
    assert (found.max_length, found.retry_delay_s, found.lossy) == (7, 1.5, False)


def test_variables_are_turned_into_the_types_of_the_config() -> None:
    variables = {
        "ESPER_BUS_MAX_LENGTH": "12",
        "ESPER_BUS_LOSSY": "true",
        "ESPER_BUS_TOPICS": '["a", "b"]',
        "ESPER_BUS_RETRY": '{"tries": 9}',
        "ESPER_BUS_NAME": "[not a list]",
    }
    found = load(BusConfig, "bus", environment=variables)
    expected = BusConfig(max_length=12, lossy=True, topics=("a", "b"), retry=Retry(tries=9), name="[not a list]")
    assert found == expected


def test_the_process_itself_is_read_where_nothing_is_given(monkeypatch: pytest.MonkeyPatch, toml: Path) -> None:
    toml.write_text("[bus]\nname = 'from file'\n")
    monkeypatch.chdir(toml.parent)
    assert load(BusConfig, "bus").name == "from file"
    monkeypatch.setenv("ESPER_BUS_NAME", "from variable")
    assert load(BusConfig, "bus").name == "from variable"


def test_the_file_is_the_one_that_esper_config_names(tmp_path: Path) -> None:
    named = tmp_path / "mine.toml"
    named.write_text("[bus]\nname = 'mine'\n")
    assert load(BusConfig, "bus", environment={"ESPER_CONFIG": str(named)}).name == "mine"


def test_a_file_that_was_named_and_is_missing_is_an_error(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    assert "ESPER_CONFIG names it" in _refused(ESPER_CONFIG=str(missing)).why
    assert "the argument path names it" in _refused(missing).why


def test_an_unknown_key_is_refused_with_its_line_and_what_was_meant(toml: Path) -> None:
    toml.write_text("# settings\n[other]\nmax_lenght = 1\n\n[bus]\nname = 'x'\nmax_lenght = 1\n")
    error = _refused(toml)
    assert error.why == f"it stands in {toml}:7"
    assert error.todo == "did you mean 'max_length'?"


def test_an_unknown_variable_is_refused_by_its_name() -> None:
    error = _refused(ESPER_BUS_COLOUR="red")
    assert error.why == "it stands in ESPER_BUS_COLOUR"
    assert "max_length" in error.todo


def test_an_unknown_key_below_a_section_is_refused(toml: Path) -> None:
    toml.write_text("[bus.retry]\ntrys = 1\n")
    assert f"retry.trys: Extra inputs are not permitted ({toml}:1)" in _refused(toml).why


def test_a_value_that_cannot_be_used_is_told_with_its_place(toml: Path) -> None:
    toml.write_text("[bus]\nmax_length = 0\n")
    assert f"max_length: Input should be greater than or equal to 1 ({toml}:2)" in _refused(toml).why
    why = _refused(ESPER_BUS_MAX_LENGTH="many").why
    assert "max_length: Input should be a valid integer" in why
    assert "(ESPER_BUS_MAX_LENGTH)" in why


def test_every_fault_is_told_at_once() -> None:
    why = _refused(ESPER_BUS_MAX_LENGTH="many", ESPER_BUS_RETRY_DELAY_S="soon").why
    assert "max_length" in why
    assert "retry_delay_s" in why


def test_a_secret_is_in_no_message_and_in_no_traceback() -> None:
    secret = "".join(["hun", "ter2"])  # a traceback shows this line too
    with pytest.raises(ConfigError) as caught:
        load(BusConfig, "bus", environment={"ESPER_BUS_TOKEN": secret, "ESPER_BUS_MAX_LENGTH": "x"})
    shown = "".join(traceback.format_exception(caught.value))
    assert secret not in shown
    assert "ESPER_BUS_TOKEN" in shown
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_file_that_is_no_toml_is_refused_with_the_line(toml: Path) -> None:
    toml.write_text("[bus]\nmax_length = \n")
    assert "line 2" in _refused(toml).why


def test_a_part_that_is_no_section_is_refused(toml: Path) -> None:
    toml.write_text("bus = 3\n")
    assert _refused(toml).todo == "write [bus]"


@pytest.mark.parametrize("part", ["", "Bus", "bus_2", "7bus"])
def test_a_part_is_named_so_that_its_variables_are_its_own(part: str) -> None:
    with pytest.raises(ConfigError):
        load(BusConfig, part, environment={})


def test_a_section_of_no_part_is_refused_with_what_was_meant(toml: Path) -> None:
    toml.write_text("[bus]\n\n[tamyio]\nseed = 1\n")
    with pytest.raises(ConfigError, match="section") as caught:
        check_parts(["bus", "tamiyo"], path=toml, environment={})
    assert caught.value.why == f"it stands in {toml}:3"
    assert caught.value.todo == "did you mean 'tamiyo'?"


def test_a_variable_of_no_part_is_refused(toml: Path) -> None:
    toml.write_text("[bus]\n")
    check_parts(["bus"], path=toml, environment={"ESPER_BUS_NAME": "x", "ESPER_CONFIG": "y", "PATH": "z"})
    with pytest.raises(ConfigError, match="ESPER_BUSS_NAME"):
        check_parts(["bus"], path=toml, environment={"ESPER_BUSS_NAME": "x"})
