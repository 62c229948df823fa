# One image with both programs, which are static; what it runs is the command. `--target mirror` makes one with berth-mirror.
FROM rust:1.95-bookworm AS build
# zig compiles the C of some crates for musl.
RUN apt-get update && apt-get install -y --no-install-recommends cmake python3-venv \
    && python3 -m venv /opt/zig && /opt/zig/bin/pip install --no-cache-dir ziglang==0.17.1 cargo-zigbuild==0.24.1
RUN rustup target add "$(uname -m)-unknown-linux-musl" && cargo install --locked --debug --version 0.5.9 cargo-cyclonedx
WORKDIR /src
# For --version: docker build --build-arg BERTH_COMMIT=$(git rev-parse --short=12 HEAD)
ARG BERTH_COMMIT=
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    PATH="/opt/zig/bin:$PATH" deploy/release.sh "$(uname -m)-unknown-linux-musl" \
    && deploy/image.sh dist/berth-*/ /image && deploy/image.sh dist/berth-*/ /image-mirror berth-mirror

FROM scratch AS mirror
COPY --from=build /image-mirror /
USER 65532:65532
ENV PATH=/usr/bin
CMD ["berth-mirror", "serve", "/etc/berth/config.json"]

FROM scratch
COPY --from=build /image /
USER 65532:65532
ENV PATH=/usr/bin
CMD ["berth-proxy", "serve", "/etc/berth/config.json"]
