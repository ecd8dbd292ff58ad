// A waveform is a slider over its clip's player: a click plays from there, arrow keys move by half a second, space plays.
const STEP = 0.5; // seconds
for (const wave of document.querySelectorAll(".wave")) {
  const player = wave.closest(".clip").querySelector("audio"), mark = wave.querySelector("i");
  const show = () => {
    const seconds = Number(wave.dataset.seconds), at = Math.min(player.currentTime, seconds);
    mark.style.width = `${100 * at / seconds}%`;
    wave.setAttribute("aria-valuemax", seconds);
    wave.setAttribute("aria-valuenow", at.toFixed(1));
    wave.setAttribute("aria-valuetext", `${at.toFixed(1)} of ${seconds.toFixed(1)} s`);
  };
  const seek = at => {
    player.currentTime = Math.max(0, Math.min(at, Number(wave.dataset.seconds))); // before it is loaded: where playing will start
    show();
  };
  const keys = {
    ArrowRight: () => seek(player.currentTime + STEP), ArrowUp: () => seek(player.currentTime + STEP),
    ArrowLeft: () => seek(player.currentTime - STEP), ArrowDown: () => seek(player.currentTime - STEP),
    Home: () => seek(0), End: () => seek(Infinity),
    " ": () => player.paused ? player.play() : player.pause(),
  };
  const label = `position in ${wave.dataset.clip}`;
  const attributes = {role: "slider", tabindex: 0, "aria-label": label, "aria-valuemin": 0};
  Object.entries(attributes).forEach(([name, value]) => wave.setAttribute(name, value));
  show();
  player.addEventListener("timeupdate", show);
  player.addEventListener("seeking", show);
  player.addEventListener("loadedmetadata", show); // of another clip in the same player
  wave.addEventListener("click", event => {
    const box = wave.getBoundingClientRect();
    seek(Number(wave.dataset.seconds) * (event.clientX - box.left) / box.width);
    player.play();
  });
  wave.addEventListener("keydown", event => {
    if (!(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });
}
