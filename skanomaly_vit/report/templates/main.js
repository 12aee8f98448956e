findEnlarged();
startMarks();
startThreshold();
startList();
startViewer();
for (const element of document.querySelectorAll(".scripted")) element.hidden = false;
