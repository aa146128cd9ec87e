/**
 * Every limit of the service, in one table. No value of a guest's, an NBD client's or an HTTP
 * client's sizes an allocation or a loop before it was compared with one of these.
 *
 * @module
 */

const KiB = 1024;
const MiB = 1024 * KiB;
const GiB = 1024 * MiB;

export const limits = {
  // machines
  vmCount: 64,
  hartCount: 8,
  memoryMinBytes: 8 * MiB,
  memoryMaxBytes: 3584 * MiB,
  diskCount: 8,
  diskMaxBytes: 16 * 1024 * GiB,
  cmdlineBytes: 2048,
  bootFileBytes: 1 * GiB,
  /** A machine that has not parked its harts by then is marked failed. */
  parkDeadlineMs: 5_000,
  /** Flushing and closing the disks of a machine may take so long. */
  closeDeadlineMs: 30_000,
  consoleLogBytes: 1 * MiB,
  consoleInputBytes: 64 * KiB,
  /** Output on its way from an I/O worker, beyond which it stays in the machine's ring. */
  consoleWindowBytes: 256 * KiB,

  // virtio
  queueSize: 256,
  segmentCount: 254,
  discardSectors: 0x400000,

  // fleecing
  fleecingsPerVm: 16,
  /** All bitmaps of one machine together: 1 TiB at 64 KiB takes 2 MiB. */
  bitmapMemoryBytes: 1 * GiB,
  /** Bits of one bitmap: what fits an unsigned 32-bit index with room to round up. */
  bitmapBits: 2 ** 31,
  bitmapNameBytes: 1023,
  bitmapsPerNode: 64,
  /** Largest min-cluster-size of copy-before-write. */
  cbwClusterBytes: 64 * MiB,
  /** Copies of one copy-before-write filter that run at the same time, and the size of each. */
  cbwCopyCount: 64,
  cbwCopyBytes: 1 * MiB,

  // NBD
  nbdNameBytes: 4096,
  nbdOptionBytes: 64 * KiB,
  nbdOptionCount: 64,
  nbdContextCount: 64,
  nbdPayloadBytes: 32 * MiB,
  nbdHandshakeMs: 10_000,
  nbdRequestsInFlight: 64,
  nbdBytesInFlight: 64 * MiB,
  nbdExtentsPerReply: 64 * 1024,
  /** Longer options end the connection, options between nbdOptionBytes and this are skipped. */
  nbdOptionSkipBytes: 1 * MiB,
  /** Replies that wait for their client; beyond it none of its requests is executed. */
  nbdOutputBytes: 1 * MiB,
  /** Work for one connection before the others of its worker get a turn. */
  nbdTurnMs: 4,
  /** A session that ends gives its client this long to take the last replies. */
  nbdCloseMs: 2_000,
  nbdConnectionsPerVm: 256,
  nbdWebSocketFrameBytes: 256 * KiB,
  /** Unacknowledged bytes between the control isolate and an I/O worker, each way. */
  nbdPortWindowBytes: 4 * MiB,
  /** Bytes that a WebSocket client may have queued here, beyond which its connection is closed. */
  nbdWebSocketQueueBytes: 40 * MiB,
  /** Bytes queued towards a WebSocket client, beyond which the server stops answering. */
  nbdWebSocketBufferedBytes: 4 * MiB,

  // HTTP
  nameBytes: 64,
  requestBodyBytes: 1 * MiB,
  imageFileBytes: 4 * GiB,
  exportReadBytes: 1 * MiB,
  extentsPerAnswer: 1024,
  ticketLifeMs: 60_000,
  ticketCount: 1024,
} as const;
