# Everything sets itself up: a virtual environment, the Triton server, the demo model. Quick the second time.
#   make demo PROMPT="…"      make serve HTTP_PORT=8000 GRPC_PORT=8001 METRICS_PORT=8002 DEPLOYMENT=deployments/local.toml
#   PYTHON=/path/to/python3.11 chooses the Python; TANDEM_TRITON_DIR=/opt/tritonserver a Triton server that is there

DEPLOYMENT   ?= deployments/local.toml
PROMPT       ?= What is the capital of France? Answer in one sentence.
HTTP_PORT    ?= 8000
GRPC_PORT    ?= 8001
METRICS_PORT ?= 8002

DEMO_MODEL := .tandem/models/smollm2-135m-instruct/tandem.json
BIN        := .venv/bin

export PYTHON
export DEMO_PROMPT := $(value PROMPT)

.NOTPARALLEL:
.PHONY: help demo serve test lint bench bench-router perf soak overload clean core dev triton
help:
	@echo "make demo    one answer from a real server, streamed     (PROMPT=\"…\")"
	@echo "make serve   serve until Ctrl-C                          (HTTP_PORT= GRPC_PORT= METRICS_PORT= DEPLOYMENT=)"
	@echo "make test    all tests          make lint   ruff and mypy"
	@echo "make bench   the engine and the whole stack, measured    make perf   perf_analyzer"
	@echo "make bench-router   the router alone: decisions and block events a second"
	@echo "make soak    14,000 requests, a tenth of which leave: nothing hangs, is left or grows"
	@echo "make overload    ten times what simulated workers can do: what is done of it, and how soon the rest is refused"
	@echo "make clean   remove everything that was set up"

demo: core triton $(DEMO_MODEL)
	@$(BIN)/tandem generate "$$DEMO_PROMPT" --deployment $(DEPLOYMENT)

serve: core triton $(DEMO_MODEL)
	@exec $(BIN)/tandem serve $(DEPLOYMENT) --http-port $(HTTP_PORT) --grpc-port $(GRPC_PORT) --metrics-port $(METRICS_PORT)

test: dev triton $(DEMO_MODEL)
	$(BIN)/pytest tests

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: dev triton $(DEMO_MODEL)
	$(BIN)/python loadtest/bench.py

bench-router: dev
	$(BIN)/python loadtest/router_bench.py

perf: dev triton $(DEMO_MODEL)
	$(BIN)/python loadtest/perf.py

soak: dev triton $(DEMO_MODEL)
	$(BIN)/python loadtest/soak.py

overload: dev triton $(DEMO_MODEL)
	$(BIN)/python loadtest/overload.py

clean:
	rm -rf .venv .tandem .mypy_cache .ruff_cache .pytest_cache .hypothesis python_backends/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

core:
	@sh build/setup

dev:
	@sh build/setup dev,loadtest

triton: | core
	@$(BIN)/python -m tandem.triton.install

$(DEMO_MODEL): | core
	@$(BIN)/python build/demo_model.py
