# Every target sets up .venv by itself.  `make demo` and `make test` are all that a newcomer needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := pyproject.toml constraints.txt runtime/CMakeLists.txt $(wildcard runtime/csrc/*)

.PHONY: demo test check check-native format clean
ROUNDS ?= 100000

demo: $(STAMP)
	$(BIN)/dns-onnx demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/types && $(BIN)/pip install -q --no-deps --target build/types . -C wheel.cmake=false
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p dns_onnx

check-native:
	for s in address,undefined thread; do \
	  cmake -S runtime -B build/$$s -DDNS_ONNX_FUZZ=ON -DDNS_ONNX_SANITIZE=$$s && \
	  cmake --build build/$$s -j2 && build/$$s/dns_onnx_fuzz $(ROUNDS) || exit 1; \
	done

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(STAMP): $(SOURCES)
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e '.[demo,tensorboard,dev]'
	@$(BIN)/python -c "from dns_onnx.runtime import library_path; print('Sparse kernels:', library_path())" 2>/dev/null \
	  || echo "Installed without the native sparse kernels; everything else works."
	touch $@

clean:
	rm -rf $(VENV) build dist demo
