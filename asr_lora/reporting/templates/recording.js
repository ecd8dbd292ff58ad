// Records 16-bit samples of the microphone, shows its level, and maps keys to the page's buttons.
window.recorder = (() => {
  const LONGEST = {{ longest }}, QUIET = {{ quiet }}, FULL = 0.999, STORED = "asr_lora.speaker";
  const KEYS = { " ": "record", p: "play", r: "again", Enter: "keep", n: "skip", b: "back" };
  const DRAWN = 8;  // levels shown for each drawing of all samples
  const WORKLET = `registerProcessor("samples", class extends AudioWorkletProcessor {
    process(inputs) { if (inputs[0][0]) this.port.postMessage(inputs[0][0].slice()); return true; }
  });`;
  let context = null, chunks = [], length = 0, recording = false, of = -1, peak = 0;
  let ticks = 0, take = null, playing = null, pending = false;

  const find = selector => document.querySelector(selector);
  const status = text => { find("#meter p").textContent = text; };
  const at = () => Number(find("#prompt [data-at]")?.dataset.at ?? -1);
  const style = name => getComputedStyle(document.documentElement).getPropertyValue(name);

  async function open() {
    const stream = await navigator.mediaDevices.getUserMedia(
      { audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false } });
    const made = new AudioContext();
    const code = URL.createObjectURL(new Blob([WORKLET], { type: "text/javascript" }));
    await made.audioWorklet.addModule(code);
    const node = new AudioWorkletNode(made, "samples", { numberOfOutputs: 0 });
    node.port.onmessage = event => hold(event.data);
    made.createMediaStreamSource(stream).connect(node);
    context = made;
    setInterval(level, 60);
  }

  function hold(samples) {
    for (const sample of samples) peak = Math.max(peak, Math.abs(sample));
    if (!recording) return;
    chunks.push(samples);
    length += samples.length;
    if (length >= LONGEST * context.sampleRate) stop(`Stopped at ${LONGEST} s, the longest clip.`);
  }

  function level() {
    const decibels = Math.max(-60, 20 * Math.log10(peak || 1e-9)), bar = find("#meter .level");
    bar.firstElementChild.style.width = `${(decibels + 60) / 0.6}%`;
    bar.dataset.is = peak >= FULL ? "clipped" : decibels < QUIET ? "quiet" : "good";
    bar.setAttribute("aria-valuenow", decibels.toFixed(0));
    bar.setAttribute("aria-valuetext", `${decibels.toFixed(0)} dBFS`);
    peak = 0;
    if (recording) {
      status(`Recording, ${(length / context.sampleRate).toFixed(1)} s. Space stops.`);
      if (ticks++ % DRAWN === 0) draw(joined());
    }
  }

  function joined() {
    const samples = new Float32Array(length);
    let filled = 0;
    for (const chunk of chunks) { samples.set(chunk, filled); filled += chunk.length; }
    return samples;
  }

  function draw(samples) {
    const canvas = find("#meter canvas"), pen = canvas.getContext("2d"), middle = canvas.height / 2;
    pen.clearRect(0, 0, canvas.width, canvas.height);
    const step = Math.ceil(samples.length / canvas.width), good = style("--tuned"), bad = style("--bad");
    for (let x = 0; x * step < samples.length; x++) {
      let most = 0;
      for (const sample of samples.subarray(x * step, (x + 1) * step)) most = Math.max(most, Math.abs(sample));
      pen.fillStyle = most >= FULL ? bad : good;
      pen.fillRect(x, middle - most * middle, 1, Math.max(1, 2 * most * middle));
    }
  }

  async function start() {
    if (at() < 0) return status("There is no sentence to read: enter your name, or go back (b).");
    try {
      if (!context) await open();
      await context.resume();
    } catch (error) {
      const rule = window.isSecureContext ? "allow it in the browser" : "it needs localhost or https";
      return status(`No microphone (${error.name}): ${rule}.`);
    }
    silence();
    [chunks, length, take, of, recording] = [[], 0, null, at(), true];
    find("#notice").toggleAttribute("data-old", true);
    find("#record").classList.add("recording");
  }

  function stop(text) {
    recording = false;
    find("#record").classList.remove("recording");
    const samples = joined();
    if (!samples.length) return status("Nothing was recorded. Press space to record.");
    take = { at: of, rate: context.sampleRate, samples };
    draw(samples);
    status(text ?? "Enter keeps it, p plays it, r records it again.");
    find("#notice").toggleAttribute("data-old", false);
    find("#measure").click();
  }

  function sent() {
    if (!take) return "";
    const whole = new Int16Array(take.samples.length);
    take.samples.forEach((sample, i) => { whole[i] = Math.max(-32768, Math.min(32767, Math.round(sample * 32768))); });
    const bytes = new Uint8Array(whole.buffer), parts = [];
    for (let i = 0; i < bytes.length; i += 32768) parts.push(String.fromCharCode(...bytes.subarray(i, i + 32768)));
    return JSON.stringify({ at: take.at, rate: take.rate, pcm: btoa(parts.join("")) });
  }

  function silence() {
    playing?.stop();
    playing = null;
  }

  function play() {
    if (!take) return status("Nothing is recorded yet. Press space to record.");
    silence();
    const buffer = context.createBuffer(1, take.samples.length, take.rate);
    buffer.copyToChannel(take.samples, 0);
    playing = context.createBufferSource();
    playing.buffer = buffer;
    playing.connect(context.destination);
    playing.start();
  }

  function reset() {
    silence();
    if (recording) { recording = false; find("#record").classList.remove("recording"); }
    [chunks, length, take] = [[], 0, null];
    draw(new Float32Array(0));
    status("Press space to record.");
  }

  document.addEventListener("keydown", event => {
    const target = event.target, id = KEYS[event.key.length > 1 ? event.key : event.key.toLowerCase()];
    const pressed = target.closest?.("button, a") && (event.key === " " || event.key === "Enter");
    if (!id || event.repeat || event.ctrlKey || event.metaKey || event.altKey || pressed) return;
    if (target.closest?.("input, textarea, select, [contenteditable]")) return;
    event.preventDefault();
    if (!(pending && id === "keep")) find(`#${id}`).click();
  });
  // After a click of the mouse the keys are the page's again, not the button's.
  document.addEventListener("click", event => { if (event.detail) event.target.closest?.("#keys button")?.blur(); });

  return {
    sent, play,
    toggle: () => recording ? stop() : start(),
    again: () => { recording = false; return start(); },
    keep: name => { if (recording) stop(); pending = true; return [sent(), at(), name]; },
    answered: () => { pending = false; },
    kept: () => {
      pending = false;
      if (!recording) reset();  // the next sentence may be begun by now
    },
    leave: name => { reset(); return [at(), name]; },
    name: () => localStorage.getItem(STORED) ?? "",
    named: name => { localStorage.setItem(STORED, name); document.activeElement?.blur(); return name; },
  };
})();
