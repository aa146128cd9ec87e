/**
 * What the interpreter was seen at, when it was stopped for a sample, and what becomes of it.
 * Counters are u8, by a hash of the place in RAM; two places may share one, which does no harm.
 */

import { NO_PAGE, ramPageOf } from "../code";
import { area, HEAT, STATE } from "./area";
import { translate } from "./module";
import { HEAT_OF_A_SAMPLE, hotSamples, SAMPLES_OF_AN_AGE } from "./policy";

const HEAT_COUNT: u32 = 0x10000;
/** Word of STATE, behind those of regions.ts. */
const SAMPLE_COUNT: u32 = 16;

/** Adds to the heat of `pc`, and translates what is hot. */
export function notePlace(pc: u64, heat: u32): void {
  const ramPage = ramPageOf(pc);
  if (ramPage === NO_PAGE) return;
  growOld();
  const place = (ramPage << 11) | (<u32> (pc >> 1) & 2047);
  const counter = area() + HEAT + ((place * 0x9e3779b1) >> 16);
  const count = <u32> load<u8>(counter) + heat;
  if (count < hotSamples * HEAT_OF_A_SAMPLE) {
    store<u8>(counter, count);
    return;
  }
  store<u8>(counter, 0);
  translate(pc);
}

function growOld(): void {
  const samples = load<u32>(area() + STATE + SAMPLE_COUNT) + 1;
  store<u32>(area() + STATE + SAMPLE_COUNT, samples);
  if (samples < SAMPLES_OF_AN_AGE) return;
  store<u32>(area() + STATE + SAMPLE_COUNT, 0);
  const heat = area() + HEAT;
  for (let at = heat; at < heat + HEAT_COUNT; at += 8) {
    store<u64>(at, (load<u64>(at) >> 1) & 0x7f7f7f7f7f7f7f7f);
  }
}
