# A container with the command line, without the viewer. It is not built by CI.
#
#     docker build -t retouch .
#     docker run --rm -v "$PWD:/work" retouch run workflow.yaml
#
# What is kept between runs (the cache, the journal) is below /home/retouch/.cache: name it with `-v retouch-cache:/home/retouch/.cache`.
# The container's user has the number 1000: a folder that it saves to must let it write (`--user "$(id -u)"` runs as you).

FROM rust:1.89-slim-bookworm AS build
# `ring`, under the TLS of hubs, is built with a C compiler.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN cargo build --release --locked --package retouch-cli --no-default-features

FROM debian:bookworm-slim
# The authorities that hubs are trusted by.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 retouch \
    && install --directory --owner=retouch --group=retouch /work /home/retouch/.cache
COPY --from=build /source/target/release/retouch /usr/local/bin/retouch
USER retouch
WORKDIR /work
ENTRYPOINT ["retouch"]
CMD ["--help"]
