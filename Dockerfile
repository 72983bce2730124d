# One image of layers that seldom change (system, Python packages) below one that often does
# (the source), then a target a service. A change of source rebuilds in seconds.
#
#   TORCH_INDEX  an index of torch wheels for another CPU or CUDA build; empty takes PyPI's
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS packages
ARG TORCH_INDEX=
WORKDIR /build
RUN python3 -m venv /venv
COPY pyproject.toml constraints.txt ./
RUN /venv/bin/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > requirements.txt \
 && /venv/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt \
      ${TORCH_INDEX:+--extra-index-url $TORCH_INDEX} -r requirements.txt

# Charts on the coordinator's page: Plotly's script out of its wheel, and nothing that it needs to
# be imported.
FROM packages AS page
RUN python3 -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['page'], sep='\n')" > page.txt \
 && /venv/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --no-compile -c constraints.txt --target /page -r page.txt

FROM ${BASE} AS hubring
# /run/hubring: the run's token. /state: what outlives a restart. /runs: results.
RUN groupadd -g 10001 hub && useradd -u 10001 -g hub -M -d /nonexistent hub \
 && install -d -o hub -g hub -m 0750 /run/hubring /state /runs
COPY --from=packages /venv /venv
ENV PATH=/venv/bin:$PATH \
    PYTHONPATH=/app/proto:/app/common:/app/coordinator:/app/server:/app/worker:/app/sdk \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /app
COPY deploy/healthz.py deploy/healthz.py
COPY proto proto
COPY common common
COPY coordinator coordinator
COPY server server
COPY worker worker
COPY sdk sdk
COPY examples examples
USER hub

FROM hubring AS coordinator
COPY --from=page /page/plotly/package_data/plotly.min.js /page/plotly/package_data/
ENV PYTHONPATH=${PYTHONPATH}:/page
ENTRYPOINT ["python", "-m", "hubring", "coordinator"]

FROM hubring AS server
ENTRYPOINT ["python", "-m", "hubring", "server"]

FROM hubring AS worker
ENTRYPOINT ["python", "-m", "hubring", "worker"]
