# The service in a container.
#
#   docker build -t ovis .
#   docker run -p 127.0.0.1:8080:8080 -v ovis:/data ovis     # prints its token at the first start
#
# Machines run in the process itself: no privileges, devices or capabilities are needed (--cap-drop ALL).
# NBD over TCP listens inside the container only, since it has no authentication: read through HTTP and
# WebSockets, or through the unix sockets in the volume; OVIS_NBD_HOST=0.0.0.0 and a network of one's own
# open it to other containers.

FROM denoland/deno:debian-2.9.6 AS build
WORKDIR /app
COPY deno.json deno.lock ./
COPY src src
COPY main.ts ./
RUN deno install --frozen --entrypoint main.ts src/cli/*.ts src/client/mod.ts && deno task build
# What only the build and the tests use stays behind; --node-modules-dir=manual below takes it as it is.
RUN cd node_modules && rm -rf assemblyscript fast-check playwright-core @types .deno/assemblyscript@* \
    .deno/binaryen@* .deno/fast-check@* .deno/playwright-core@* .deno/@types+* .deno/undici-types@*

FROM denoland/deno:debian-2.9.6
WORKDIR /app
COPY --from=build /app/deno.json /app/deno.lock ./
COPY --from=build /app/node_modules node_modules
COPY --from=build /app/src src
COPY main.ts ./
COPY tests/guests/demo/demo.elf tests/guests/demo/demo.elf
RUN mkdir /data && chown deno:deno /data
USER deno
ENV OVIS_HOST=0.0.0.0 OVIS_PORT=8080 OVIS_DATA=/data DENO_NO_UPDATE_CHECK=1
VOLUME /data
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["deno", "eval", "--no-config", \
    "Deno.exit((await fetch(`http://127.0.0.1:${Deno.env.get('OVIS_PORT')}/healthz`)).ok ? 0 : 1)"]
CMD ["deno", "run", "--v8-flags=--wasm-tiering-budget=40000000,--experimental-wasm-wide-arithmetic", "--no-prompt", "--cached-only", "--node-modules-dir=manual", \
    "--allow-read=/app,/data", "--allow-write=/data", \
    "--allow-net", "--allow-env=OVIS_*,HOME,XDG_DATA_HOME", "--allow-sys=uid,statfs", \
    "--allow-ffi=/lib/x86_64-linux-gnu/libc.so.6,/lib/aarch64-linux-gnu/libc.so.6", \
    "main.ts", "serve"]
