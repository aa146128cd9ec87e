/**
 * The I/O worker of one machine, or of disks without one: the calls of messages.ts. It runs with the
 * permissions that its disks need and no others.
 *
 * @module
 */

/// <reference lib="deno.worker" />

import { BlockError } from "../block/errors.ts";
import { IoMachine } from "./io_machine.ts";
import { answerCall, type IoHandlers } from "./io_rpc.ts";
import type { IoEvent, IoNotice, IoRequest, StorageOpened } from "./messages.ts";
import { IoStorage } from "./storage.ts";

let openMachine: IoMachine | null = null;
let openStorage: IoStorage | null = null;

function emit(event: IoEvent): void {
  self.postMessage(event, event.type === "console" ? [event.bytes.buffer] : []);
}

function machine(): IoMachine {
  if (openMachine === null) throw new BlockError("EINVAL", "the machine is not open");
  return openMachine;
}

function storage(): IoStorage {
  if (openStorage === null) throw new BlockError("EINVAL", "the disks are not open");
  return openStorage;
}

function checkClosed(): void {
  if (openStorage !== null) throw new BlockError("EINVAL", "the worker is open already");
}

function opened(): { result: StorageOpened } {
  return { result: { nbd: storage().nbd, disks: storage().describeDisks() } };
}

const handlers: IoHandlers = {
  open: async (params) => {
    checkClosed();
    openMachine = await IoMachine.open(params, emit);
    openStorage = openMachine.storage;
    return opened();
  },
  openStorage: async ({ config, kernels }) => {
    checkClosed();
    openStorage = await IoStorage.open(config, { kernels, hasGuest: false, emit });
    return opened();
  },
  load: () => machine().load(),
  consoleInput: (params) => machine().consoleInput(params),
  fleecingStart: (params) => storage().fleecingStart(params),
  fleecingInfo: (params) => storage().fleecingInfo(params),
  fleecingEnd: (params) => storage().fleecingEnd(params),
  fleecingEstimate: (params) => storage().fleecingEstimate(params),
  transact: (params) => storage().transact(params),
  diskInfo: (params) => storage().diskInfo(params),
  diskCreate: (params) => storage().diskCreate(params),
  jobStart: (params) => storage().jobStart(params),
  jobCommand: (params) => storage().jobCommand(params),
  jobSetSpeed: (params) => storage().jobSetSpeed(params),
  jobList: () => storage().jobList(),
  diskResize: (params) => storage().diskResize(params),
  diskRead: (params) => storage().diskRead(params),
  diskWrite: (params) => storage().diskWrite(params),
  diskFlush: (params) => storage().diskFlush(params),
  diskExtents: (params) => storage().diskExtents(params),
  exportInfo: (params) => storage().exportInfo(params),
  exportRead: (params) => storage().exportRead(params),
  exportExtents: (params) => storage().exportExtents(params),
  exportDiscard: (params) => storage().exportDiscard(params),
  monitorOpen: (params) => storage().monitorOpen(params),
  nbdOpen: (params) => storage().nbdOpen(params),
  nbdStatistics: () => storage().nbdStatistics(),
  close: async () => {
    const closing = openMachine ?? openStorage;
    openMachine = null;
    openStorage = null;
    await closing?.close();
    return { result: {} };
  },
};

self.onmessage = ({ data }: MessageEvent<IoRequest | IoNotice>) => {
  if ("type" in data) {
    if (data.type === "consoleTaken") openMachine?.consoleTaken(data.byteCount);
    else if (data.type === "runState") openStorage?.monitor?.setRunState(data.state);
    else openStorage?.questions.settle(data);
  } else {
    answerCall(data, handlers, (response, transfer) => self.postMessage(response, transfer));
  }
};
