# One image for every role; the command names the role (see docker-compose.yml).
ARG PYTHON=3.11
FROM python:${PYTHON}-slim AS build
WORKDIR /src
RUN python -m venv /opt/venv
COPY constraints.txt ./
# `gpu` takes torch's ordinary build with CUDA; any other value the small build for CPUs. The index of the CPU builds is
# given by whoever builds the image (--build-arg TORCH_INDEX=...), so that no host stands here.
ARG VARIANT=cpu
ARG TORCH_INDEX=""
RUN if [ "$VARIANT" = cpu ] && [ -n "$TORCH_INDEX" ]; then \
      /opt/venv/bin/pip install --no-cache-dir --index-url "$TORCH_INDEX" "$(grep '^torch==' constraints.txt)"; \
    fi
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY monitor monitor
COPY models models
COPY consumers consumers
COPY dashboard dashboard
RUN /opt/venv/bin/pip install --no-cache-dir -c constraints.txt ".[postgresql]"

FROM python:${PYTHON}-slim
RUN useradd --system --uid 10001 --create-home --home-dir /home/monitor monitor \
    && install -d -o monitor -g monitor /data
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    SENTIMENT_MONITOR_DATA_DIR=/data \
    SENTIMENT_MONITOR_LOG_JSON=true
USER monitor
WORKDIR /home/monitor
VOLUME /data
ENTRYPOINT ["sentiment-monitor"]
CMD ["doctor"]
