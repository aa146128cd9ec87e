/**
 * The I/O worker of one machine: the calls of messages.ts, carried out by an IoMachine. It runs
 * with the permissions that its machine needs and no others.
 *
 * @module
 */

/// <reference lib="deno.worker" />

import { BlockError } from "../block/errors.ts";
import { IoMachine } from "./io_machine.ts";
import { answerCall, type IoHandlers } from "./io_rpc.ts";
import type { IoEvent, IoNotice, IoRequest } from "./messages.ts";

let opened: IoMachine | null = null;

function emit(event: IoEvent): void {
  self.postMessage(event, event.type === "console" ? [event.bytes.buffer] : []);
}

function machine(): IoMachine {
  if (opened === null) throw new BlockError("EINVAL", "the machine is not open");
  return opened;
}

const handlers: IoHandlers = {
  open: async (params) => {
    if (opened !== null) throw new BlockError("EINVAL", "the machine is open already");
    opened = await IoMachine.open(params, emit);
    return { result: opened.nbd };
  },
  load: () => machine().load(),
  consoleInput: (params) => machine().consoleInput(params),
  fleecingStart: (params) => machine().fleecingStart(params),
  fleecingInfo: (params) => machine().fleecingInfo(params),
  fleecingStop: (params) => machine().fleecingStop(params),
  exportInfo: (params) => machine().exportInfo(params),
  exportRead: (params) => machine().exportRead(params),
  exportExtents: (params) => machine().exportExtents(params),
  nbdOpen: (params) => machine().nbdOpen(params),
  close: async () => {
    const answer = await opened?.close() ?? { result: {} };
    opened = null;
    return answer;
  },
};

self.onmessage = ({ data }: MessageEvent<IoRequest | IoNotice>) => {
  if ("type" in data) opened?.consoleTaken(data.byteCount);
  else {
    answerCall(data, handlers, (response, transfer) => self.postMessage(response, transfer));
  }
};
