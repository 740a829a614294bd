"""Every recipe is a whole params.yaml that its stages understand, and whose stages find what they read."""

import re
import runpy
from pathlib import Path, PurePath

import pytest
import yaml
from test_repository import ROOT, made_by_stages, params, resolved, stages

from posttrain.config import METHODS, load_yaml
from posttrain.experiment.own_task import read_own
from posttrain.experiment.params import stage_config
from posttrain.experiment.recipes import opening, recipes
from posttrain.experiment.settings import read_settings

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
NAMED = [pytest.param(path, id=path.stem) for path in RECIPES]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("path", NAMED)
def test_it_has_the_sections_of_the_default(path: Path) -> None:
    assert list(load_yaml(str(path))) == list(params())


@pytest.mark.parametrize("path", NAMED)
@pytest.mark.parametrize("method", METHODS)
def test_its_flags_are_those_of_the_method(path: Path, method: str) -> None:
    config, _ = stage_config(method, ["--params", str(path)])
    mine, default = load_yaml(str(path))[method], params()[method]
    for key in ("output_dir", "work_dir", "metrics_file", "plots_file"):  # dvc.yaml names them
        assert mine[key] == default[key]
    assert config.seed == 0
    if config.use_peft and load_yaml(str(path))["sft"].get("use_peft"):
        assert config.model_name_or_path == "models/base"  # an adapter upon an adapter is refused


@pytest.mark.parametrize("path", NAMED)
def test_other_stages_understand_their_sections(path: Path) -> None:
    read_own(load_yaml(str(path))["prepare"], f"{path.name}: prepare")
    for script in (ROOT / "scripts").glob("*.py"):
        for name, cls in runpy.run_path(str(script)).items():
            is_section = name.endswith("Settings") and name != "EmbeddedSettings" and isinstance(cls, type)
            if is_section and (cls.__module__ == "<run_path>" or ".gates." in cls.__module__):
                read_settings(cls, script.stem, str(path))


@pytest.mark.parametrize("path", NAMED)
def test_what_its_stages_read_its_stages_make(path: Path) -> None:
    content = load_yaml(str(path))
    made = made_by_stages(content) | {"raw"}
    for stage in stages().values():
        for file in resolved(stage, stage["deps"], content):
            assert any(PurePath(file).is_relative_to(other) for other in made), file


@pytest.mark.parametrize("path", NAMED)
def test_it_begins_with_what_it_is_and_how_it_is_run(path: Path) -> None:
    text = opening(path.read_text(encoding="utf-8"))
    assert f"make use RECIPE={path.stem}" in text
    assert re.search(r"^  (make pipeline|dvc repro \w+)", text, flags=re.MULTILINE)
    assert "not yet run" in text or "docs/gsm8k_example.md" in text
    assert max(map(len, path.read_text(encoding="utf-8").splitlines())) <= 140


def test_the_page_lists_them_all() -> None:
    page = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    for name in recipes(ROOT / "recipes"):
        assert f"../recipes/{name}.yaml" in page


def test_no_recipe_repeats_a_key() -> None:
    for path in RECIPES:
        assert yaml.safe_load(path.read_text(encoding="utf-8")) == load_yaml(str(path))
