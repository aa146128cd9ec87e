/**
 * The goldfish RTC: nanoseconds since 1970 from the host's clock plus what the guest set, and one
 * alarm. Several harts at once can only confuse their own clock: every word stands alone.
 */

import { RTC_BASE, RTC_EPOCH_NS } from "../layout";
import { refuseAccess } from "./fault";
import { updateLines } from "./interrupts";
import { NS_PER_TICK, readTime } from "./time";

// Registers.
const RTC_TIME_LOW: u32 = 0x00; // a load latches RTC_TIME_HIGH; a store sets the time with it
const RTC_TIME_HIGH: u32 = 0x04;
const RTC_ALARM_LOW: u32 = 0x08; // a store arms the alarm
const RTC_ALARM_HIGH: u32 = 0x0c;
const RTC_IRQ_ENABLED: u32 = 0x10;
const RTC_CLEAR_ALARM: u32 = 0x14;
const RTC_ALARM_STATUS: u32 = 0x18;
const RTC_CLEAR_INTERRUPT: u32 = 0x1c;

// Words in the device block.
const TIME_OFFSET_NS: u32 = RTC_BASE + 0x00; // u64
const LATCHED_HIGH: u32 = RTC_BASE + 0x08;
const WRITTEN_HIGH: u32 = RTC_BASE + 0x0c;
const ALARM_NS: u32 = RTC_BASE + 0x10; // u64
const ALARM_HIGH: u32 = RTC_BASE + 0x18;
const ALARM_ARMED: u32 = RTC_BASE + 0x1c;
const IRQ_ENABLED: u32 = RTC_BASE + 0x20;
const IRQ_PENDING: u32 = RTC_BASE + 0x24;

export function rtcLoad(offset: u32, size: u32): u64 {
  if (size !== 4) return refuseAccess();
  if (offset === RTC_TIME_LOW) {
    const time: u64 = readClock();
    store<u32>(LATCHED_HIGH, <u32> (time >> 32));
    return <u64> (<u32> time);
  }
  if (offset === RTC_TIME_HIGH) return <u64> load<u32>(LATCHED_HIGH);
  if (offset === RTC_ALARM_LOW) return <u64> load<u32>(ALARM_NS);
  if (offset === RTC_ALARM_HIGH) return <u64> load<u32>(ALARM_NS + 4);
  if (offset === RTC_IRQ_ENABLED) return <u64> load<u32>(IRQ_ENABLED);
  if (offset === RTC_ALARM_STATUS) {
    fireAlarm();
    return <u64> load<u32>(ALARM_ARMED);
  }
  return 0;
}

export function rtcStore(offset: u32, value: u32, size: u32): void {
  if (size !== 4) {
    refuseAccess();
    return;
  }
  if (offset === RTC_TIME_LOW) {
    const time: u64 = (<u64> load<u32>(WRITTEN_HIGH) << 32) | value;
    store<u64>(TIME_OFFSET_NS, time - (readClock() - load<u64>(TIME_OFFSET_NS)));
  } else if (offset === RTC_TIME_HIGH) {
    store<u32>(WRITTEN_HIGH, value);
  } else if (offset === RTC_ALARM_LOW) {
    store<u64>(ALARM_NS, (<u64> load<u32>(ALARM_HIGH) << 32) | value);
    store<u32>(ALARM_ARMED, 1);
  } else if (offset === RTC_ALARM_HIGH) {
    store<u32>(ALARM_HIGH, value);
  } else if (offset === RTC_IRQ_ENABLED) {
    store<u32>(IRQ_ENABLED, value & 1);
  } else if (offset === RTC_CLEAR_ALARM) {
    store<u32>(ALARM_ARMED, 0);
  } else if (offset === RTC_CLEAR_INTERRUPT) {
    store<u32>(IRQ_PENDING, 0);
  }
  updateLines();
}

/** Level of the interrupt line. */
export function rtcLevel(): bool {
  if (load<u32>(IRQ_ENABLED) === 0) return false;
  fireAlarm();
  return load<u32>(IRQ_PENDING) !== 0;
}

/** Ticks until the alarm interrupts, u64.MAX_VALUE if it will not. */
export function rtcTicksToAlarm(): u64 {
  if (load<u32>(IRQ_ENABLED) === 0 || load<u32>(ALARM_ARMED) === 0) return u64.MAX_VALUE;
  const now: u64 = readClock();
  const alarm: u64 = load<u64>(ALARM_NS);
  return alarm > now ? (alarm - now) / NS_PER_TICK + 1 : 0;
}

function readClock(): u64 {
  return load<u64>(RTC_EPOCH_NS) + readTime() * NS_PER_TICK + load<u64>(TIME_OFFSET_NS);
}

function fireAlarm(): void {
  if (load<u32>(ALARM_ARMED) === 0 || readClock() < load<u64>(ALARM_NS)) return;
  store<u32>(ALARM_ARMED, 0);
  store<u32>(IRQ_PENDING, 1);
}
