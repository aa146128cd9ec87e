/**
 * The bus beside RAM: which device answers which guest physical address (the map of QEMU's `virt`).
 * Accesses are naturally aligned or refused; a device sees an offset within its own window only.
 */

import {
  CLINT_GPA,
  CLINT_SIZE,
  FINISHER_GPA,
  FINISHER_SIZE,
  PLIC_GPA,
  PLIC_SIZE,
  RTC_GPA,
  RTC_SIZE,
  UART_GPA,
  UART_SIZE,
  VIRTIO_GPA,
  VIRTIO_SLOT_SIZE,
  VIRTIO_SLOTS,
} from "../layout";
import { clintLoad, clintStore } from "./clint";
import { clearFault, refuseAccess } from "./fault";
import { finisherLoad, finisherStore } from "./finisher";
import { plicLoad, plicStore } from "./plic";
import { rtcLoad, rtcStore } from "./rtc";
import { uartLoad, uartStore } from "./uart";
import { virtioLoad, virtioStore } from "./virtio_mmio";

export { mmioFault } from "./fault";

const VIRTIO_SIZE: u32 = VIRTIO_SLOTS * VIRTIO_SLOT_SIZE;

/** A load of 1, 2, 4 or 8 bytes. Look at mmioFault afterwards. */
export function mmioLoad(gpa: u64, size: u32): u64 {
  clearFault();
  if (gpa > u32.MAX_VALUE || (gpa & (size - 1)) !== 0) return refuseAccess();
  const at: u32 = <u32> gpa;
  // Offsets are unsigned: an address below a window gives one far above its size.
  if (at - VIRTIO_GPA < VIRTIO_SIZE) return virtioLoad(at - VIRTIO_GPA, size);
  if (at - UART_GPA < UART_SIZE) return uartLoad(at - UART_GPA);
  if (at - PLIC_GPA < PLIC_SIZE) return plicLoad(at - PLIC_GPA, size);
  if (at - CLINT_GPA < CLINT_SIZE) return clintLoad(at - CLINT_GPA, size);
  if (at - RTC_GPA < RTC_SIZE) return rtcLoad(at - RTC_GPA, size);
  if (at - FINISHER_GPA < FINISHER_SIZE) return finisherLoad(size);
  return refuseAccess();
}

/** A store of 1, 2, 4 or 8 bytes. Look at mmioFault afterwards. */
export function mmioStore(gpa: u64, value: u64, size: u32): void {
  clearFault();
  if (gpa > u32.MAX_VALUE || (gpa & (size - 1)) !== 0) {
    refuseAccess();
    return;
  }
  const at: u32 = <u32> gpa;
  const word: u32 = <u32> value;
  if (at - VIRTIO_GPA < VIRTIO_SIZE) virtioStore(at - VIRTIO_GPA, word, size);
  else if (at - UART_GPA < UART_SIZE) uartStore(at - UART_GPA, word);
  else if (at - PLIC_GPA < PLIC_SIZE) plicStore(at - PLIC_GPA, word, size);
  else if (at - CLINT_GPA < CLINT_SIZE) clintStore(at - CLINT_GPA, value, size);
  else if (at - RTC_GPA < RTC_SIZE) rtcStore(at - RTC_GPA, word, size);
  else if (at - FINISHER_GPA < FINISHER_SIZE) finisherStore(at - FINISHER_GPA, word, size);
  else refuseAccess();
}
