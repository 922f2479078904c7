# qwell on CPUs:
#   docker build -t qwell .
#   docker run -p 8000:8000 -e QWELL_API_KEY=... -v /srv/models:/models:ro qwell --model /models/Qwen3-0.6B
# Give `docker stop` more time than --drain-seconds has (20 s): docker stop --timeout 30.
FROM python:3.12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends cmake g++ make \
  && rm -rf /var/lib/apt/lists/*
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/qwell && /opt/qwell/bin/pip install "torch==2.13.0+cpu"
COPY . /src
RUN /opt/qwell/bin/pip install /src

FROM python:3.12-slim
# What torch's CPU kernels and our own link to.
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 \
  && rm -rf /var/lib/apt/lists/* \
  && useradd --create-home --uid 10001 qwell
COPY --from=build /opt/qwell /opt/qwell
USER qwell
VOLUME /home/qwell/.cache
EXPOSE 8000
HEALTHCHECK --start-period=15m --interval=10s \
  CMD ["/opt/qwell/bin/python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health')"]
# Without a key the server refuses this address: set QWELL_API_KEY.
ENTRYPOINT ["/opt/qwell/bin/qwell", "serve", "--host", "0.0.0.0"]
