for (const g of document.querySelectorAll('.gallery')) {
  const form = g.querySelector('form'), picks = [...form.querySelectorAll('select')], cards = [...g.querySelectorAll('.card')];
  const show = () => {
    let n = 0;
    for (const c of cards) { c.hidden = !picks.every(s => !s.value || c.dataset[s.name] === s.value); n += !c.hidden; }
    form.querySelector('output').textContent = n + ' of ' + cards.length;
  };
  const fromAddress = () => {
    const asked = new URLSearchParams(location.hash.slice(1));
    for (const s of picks) if (asked.has(s.name) && [...s.options].some(o => o.value === asked.get(s.name))) s.value = asked.get(s.name);
    show();
  };
  form.hidden = false;
  form.addEventListener('change', show);
  addEventListener('hashchange', fromAddress);
  fromAddress();
}
