# SoftHSM behind `p11-kit server`. Built by scripts/softhsm-image, with scripts/ as the context.
FROM debian:12-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends softhsm2 p11-kit p11-kit-modules \
 && rm -rf /var/lib/apt/lists/*
COPY softhsm-serve /usr/local/bin/softhsm-serve
ENTRYPOINT ["/usr/local/bin/softhsm-serve"]
