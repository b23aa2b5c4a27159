for (const b of document.querySelectorAll('.pick button')) {
  const charts = document.querySelector('.curves'), n = b.dataset.arm;
  const show = on => {
    for (const e of charts.querySelectorAll('.lit')) e.classList.remove('lit');
    charts.classList.toggle('one', on);
    if (on) for (const e of charts.querySelectorAll('.arm' + n)) e.classList.add('lit');
  };
  const held = () => document.querySelector('.pick button[aria-pressed=true]');
  const rest = () => { const h = held(); if (h) h.dispatchEvent(new Event('show')); else show(false); };
  b.addEventListener('show', () => show(true));
  b.addEventListener('mouseenter', () => show(true));
  b.addEventListener('focus', () => show(true));
  b.addEventListener('mouseleave', rest);
  b.addEventListener('blur', rest);
  b.addEventListener('click', () => {
    const was = b.getAttribute('aria-pressed') === 'true', h = held();
    if (h) h.setAttribute('aria-pressed', 'false');
    b.setAttribute('aria-pressed', String(!was));
    rest();
  });
}
